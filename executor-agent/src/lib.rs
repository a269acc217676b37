//! The executor: registers, accepts streams, runs processes, serves files.
