//! The libFuzzer harness of `rendez_fuzz::framing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rendez_fuzz::framing::run(data));
