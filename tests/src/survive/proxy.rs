//! A TCP proxy between an endpoint and the relay that behaves like a bad
//! network.
//!
//! - [`Proxy::reset_all`] resets every connection at both sides.
//! - [`Proxy::half_close`] ends every connection towards one side, while the
//!   other direction goes on.
//! - [`Proxy::set_stalled`] holds back all data and new connections until it is
//!   reset.
//! - If the relay does not listen, the endpoint's connection is reset, as the kernel
//!   would do.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use futures_util::future::{Either, join, select};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes per read: the most that a stalled connection holds.
const READ_BYTES: usize = 64 * 1024;

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The agent's or the orchestrator's.
    Endpoint,
    /// The relay's.
    Relay,
}

/// The state of the network. By the counters, a connection recognises events after
/// its start.
#[derive(Debug, Clone, Copy, Default)]
struct Conditions {
    stalled: bool,
    resets: u64,
    /// By [`Side`].
    half_closes: [u64; 2],
}

/// A proxy. Dropping it closes the listener and every connection.
pub struct Proxy {
    local: SocketAddr,
    conditions: watch::Sender<Conditions>,
    carried: Arc<AtomicU64>,
    listener: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of `address` and forwards to `relay`.
    pub async fn start(address: IpAddr, relay: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let local = listener.local_addr()?;
        let conditions = watch::Sender::new(Conditions::default());
        let carried = Arc::new(AtomicU64::new(0));
        let accepting = accept(listener, relay, conditions.subscribe(), carried.clone());
        Ok(Self { local, conditions, carried, listener: tokio::spawn(accepting) })
    }

    /// The relay's URL through this proxy.
    pub fn url(&self) -> String {
        format!("http://{}", self.local)
    }

    /// Resets every connection.
    pub fn reset_all(&self) {
        self.conditions.send_modify(|conditions| conditions.resets += 1);
    }

    /// Closes the direction towards one side of every connection.
    pub fn half_close(&self, towards: Side) {
        self.conditions.send_modify(|conditions| conditions.half_closes[towards as usize] += 1);
    }

    /// Holds back all data, or forwards it again.
    pub fn set_stalled(&self, stalled: bool) {
        self.conditions.send_modify(|conditions| conditions.stalled = stalled);
    }

    /// Bytes forwarded so far, in both directions together.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn accept(
    listener: TcpListener,
    relay: SocketAddr,
    conditions: watch::Receiver<Conditions>,
    carried: Arc<AtomicU64>,
) {
    while let Ok((endpoint, _)) = listener.accept().await {
        tokio::spawn(connection(endpoint, relay, conditions.clone(), carried.clone()));
    }
}

async fn connection(
    mut endpoint: TcpStream,
    relay: SocketAddr,
    mut conditions: watch::Receiver<Conditions>,
    carried: Arc<AtomicU64>,
) {
    let born = *conditions.borrow();
    let cut = pin!(changed(conditions.clone(), move |conditions| conditions.resets != born.resets));
    let there = async {
        stall_over(&mut conditions).await;
        TcpStream::connect(relay).await
    };
    let (mut far, cut) = match select(pin!(there), cut).await {
        Either::Left((Ok(far), cut)) => (far, cut),
        Either::Left((Err(_), _)) | Either::Right(_) => return reset(&endpoint),
    };
    let _ = (endpoint.set_nodelay(true), far.set_nodelay(true));
    let ended = {
        let (from_endpoint, to_endpoint) = endpoint.split();
        let (from_relay, to_relay) = far.split();
        let up = carry(from_endpoint, to_relay, Side::Relay, born, conditions.clone(), &carried);
        let down =
            carry(from_relay, to_endpoint, Side::Endpoint, born, conditions.clone(), &carried);
        matches!(select(pin!(join(up, down)), cut).await, Either::Left(_))
    };
    if !ended {
        reset(&endpoint);
        reset(&far);
    }
}

/// Forwards one direction, until its end or a half-close.
async fn carry(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    towards: Side,
    born: Conditions,
    mut conditions: watch::Receiver<Conditions>,
    carried: &AtomicU64,
) {
    let closes = move |conditions: &Conditions| conditions.half_closes[towards as usize];
    let mut closed =
        pin!(changed(conditions.clone(), move |conditions| closes(conditions) != closes(&born)));
    let mut buffer = vec![0; READ_BYTES];
    while let Either::Left((Ok(length @ 1..), _)) =
        select(pin!(from.read(&mut buffer)), closed.as_mut()).await
    {
        stall_over(&mut conditions).await;
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
        carried.fetch_add(length as u64, Ordering::Relaxed);
    }
    let _ = to.shutdown().await;
}

/// Waits while the proxy is stalled.
async fn stall_over(conditions: &mut watch::Receiver<Conditions>) {
    // An error means that the proxy was dropped.
    let _ = conditions.wait_for(|conditions| !conditions.stalled).await;
}

/// Waits until `so` holds, or the proxy was dropped.
async fn changed(mut conditions: watch::Receiver<Conditions>, so: impl Fn(&Conditions) -> bool) {
    let _ = conditions.wait_for(so).await;
}

/// Turns the following close into a reset.
fn reset(connection: &TcpStream) {
    let _ = connection.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SHORT_TIMEOUT: Duration = Duration::from_secs(10);
    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    async fn connected() -> (Proxy, TcpStream, TcpStream) {
        let relay = TcpListener::bind((HERE, 0)).await.unwrap();
        let proxy = Proxy::start(HERE, relay.local_addr().unwrap()).await.unwrap();
        let mut endpoint = TcpStream::connect(proxy.local).await.unwrap();
        let (mut far, _) = relay.accept().await.unwrap();
        exchange(&mut endpoint, &mut far).await;
        (proxy, endpoint, far)
    }

    async fn exchange(a: &mut TcpStream, b: &mut TcpStream) {
        a.write_all(b"ping").await.unwrap();
        assert_eq!(read(b).await.unwrap(), b"ping");
        b.write_all(b"pong").await.unwrap();
        assert_eq!(read(a).await.unwrap(), b"pong");
    }

    async fn read(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
        let mut buffer = [0; 16];
        let length = timeout(SHORT_TIMEOUT, stream.read(&mut buffer)).await.unwrap()?;
        Ok(buffer[..length].to_vec())
    }

    #[tokio::test]
    async fn reset_closes_both_sides() {
        let (proxy, mut endpoint, mut far) = connected().await;
        assert_eq!(proxy.carried(), 8);
        proxy.reset_all();
        let reset = std::io::ErrorKind::ConnectionReset;
        assert_eq!(read(&mut endpoint).await.unwrap_err().kind(), reset);
        assert_eq!(read(&mut far).await.unwrap_err().kind(), reset);
    }

    #[tokio::test]
    async fn half_close_ends_one_direction() {
        let (proxy, mut endpoint, mut far) = connected().await;
        proxy.half_close(Side::Endpoint);
        assert_eq!(read(&mut endpoint).await.unwrap(), b"");
        endpoint.write_all(b"still").await.unwrap();
        assert_eq!(read(&mut far).await.unwrap(), b"still");
    }

    #[tokio::test]
    async fn stalled_proxy_delays_and_loses_nothing() {
        let (proxy, mut endpoint, mut far) = connected().await;
        proxy.set_stalled(true);
        endpoint.write_all(b"late").await.unwrap();
        let mut buffer = [0; 16];
        let early = timeout(Duration::from_millis(50), far.read(&mut buffer)).await;
        assert!(early.is_err(), "data passed a stalled proxy");
        proxy.set_stalled(false);
        assert_eq!(read(&mut far).await.unwrap(), b"late");
    }

    #[tokio::test]
    async fn unreachable_relay_resets_the_endpoint() {
        let relay = TcpListener::bind((HERE, 0)).await.unwrap();
        let proxy = Proxy::start(HERE, relay.local_addr().unwrap()).await.unwrap();
        drop(relay);
        let mut endpoint = TcpStream::connect(proxy.local).await.unwrap();
        assert!(read(&mut endpoint).await.is_err());
    }
}
