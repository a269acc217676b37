//! The libFuzzer harness of `rendez_fuzz::mux_ops`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rendez_fuzz::mux_ops::run(data));
