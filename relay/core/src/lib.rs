//! The pure switchboard of one executor: ports, claims, lanes.
