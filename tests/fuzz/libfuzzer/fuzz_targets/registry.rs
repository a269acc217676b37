//! The libFuzzer harness of `rendez_fuzz::registry`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rendez_fuzz::registry::run(data));
