//! Reach an executor by environment id: processes and files.
