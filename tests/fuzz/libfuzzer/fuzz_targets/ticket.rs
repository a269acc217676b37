//! The libFuzzer harness of `rendez_fuzz::ticket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rendez_fuzz::ticket::run(data));
