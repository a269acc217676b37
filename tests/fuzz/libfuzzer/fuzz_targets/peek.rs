//! The libFuzzer harness of `rendez_fuzz::peek`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rendez_fuzz::peek::run(data));
