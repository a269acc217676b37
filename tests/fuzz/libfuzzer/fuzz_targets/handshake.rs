//! The libFuzzer harness of `rendez_fuzz::handshake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rendez_fuzz::handshake::run(data));
