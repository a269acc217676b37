//! The libFuzzer harness of `rendez_fuzz::mux_peer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rendez_fuzz::mux_peer::run(data));
