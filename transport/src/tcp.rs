//! The options of every TCP connection below a websocket.

use std::io;

#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::net::TcpStream;

/// Bytes that the kernel may hold and has not sent yet. A socket takes more only when
/// fewer wait, so a frame that is due before others does not stand behind them in the
/// kernel. Bytes that were sent and are not acknowledged are not limited, so a path
/// with long round trips stays as fast.
pub const UNSENT_MAX_BYTES: u32 = 16 * 1024;

/// Sets the options of a connection.
///
/// * `TCP_NODELAY`: with Nagle's algorithm the Noise handshake takes 45 ms instead of 2.
/// * `TCP_NOTSENT_LOWAT` (Linux): [`UNSENT_MAX_BYTES`].
///
/// # Errors
/// The system's.
pub fn configure(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT_MAX_BYTES)?;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::ErrorKind;

    use tokio::net::TcpListener;

    use super::*;

    /// Bytes that a connection takes whose peer reads nothing.
    fn taken(tcp: &TcpStream) -> usize {
        let mut taken = 0;
        loop {
            match tcp.try_write(&[0; 1024]) {
                Ok(length) => taken += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return taken,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[tokio::test]
    async fn unsent_bytes_are_limited() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Small, so that the peer's kernel takes little.
        SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
        let mut sizes = [0, 0];
        for (size, limited) in sizes.iter_mut().zip([true, false]) {
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let _peer = listener.accept().await.unwrap();
            if limited {
                configure(&tcp).unwrap();
                assert!(tcp.nodelay().unwrap());
                assert_eq!(SockRef::from(&tcp).tcp_notsent_lowat().unwrap(), UNSENT_MAX_BYTES);
            }
            tcp.writable().await.unwrap();
            *size = taken(&tcp);
        }
        let [limited, unlimited] = sizes;
        // One segment of loopback above the limit.
        assert!(limited <= 3 * UNSENT_MAX_BYTES as usize + 64 * 1024, "{limited}");
        assert!(unlimited > 2 * limited, "{unlimited}, limited {limited}");
    }
}
