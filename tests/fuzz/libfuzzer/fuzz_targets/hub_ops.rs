//! The libFuzzer harness of `rendez_fuzz::hub_ops`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rendez_fuzz::hub_ops::run(data));
