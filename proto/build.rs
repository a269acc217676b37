//! Compiles `relay.proto` without a `protoc` on anybody's machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=relay.proto");
    let descriptors = protox::compile(["relay.proto"], ["."])?;
    // `Bytes` fields are slices of the websocket message: decoding copies no payload.
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
