//! The libFuzzer harness of `rendez_fuzz::rpc`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rendez_fuzz::rpc::run(data));
