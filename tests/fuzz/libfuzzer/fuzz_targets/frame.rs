//! The libFuzzer harness of `rendez_fuzz::frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rendez_fuzz::frame::run(data));
