//! Environments, registrations, tokens and tickets, over a Store.
