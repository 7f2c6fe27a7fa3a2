//! A TCP proxy with faults that a test switches while connections are open.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

/// What the proxy does with connections, old and new.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Pass,
    /// Each piece of data arrives so much later.
    Delay(Duration),
    /// Nothing passes; later all of it does, as after a partition that TCP survives.
    Hold,
    /// A black hole: what is sent is accepted and lost. Connections that lost data are reset at the end.
    Swallow,
    /// The server's side is closed, the client's stays open and silent until the mode changes.
    HalfOpen,
    /// Connections are closed in order.
    Cut,
    /// Connections are reset.
    Reset,
}

pub(crate) struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// To a port of the loopback interface.
    pub(crate) async fn start(target: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Pass);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, target, modes.clone()));
            }
        });
        Proxy { address, mode, _accepting: AbortOnDropHandle::new(accepting) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Close,
    Reset,
    HalfOpen,
}

async fn serve(mut client: TcpStream, target: u16, mut modes: watch::Receiver<Mode>) {
    let end = match connect(&mut client, target, &mut modes).await {
        Err(end) => end,
        Ok(mut server) => {
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let end = relay(&mut client, &mut server, &modes).await;
            if end == End::Reset {
                let _ = server.set_zero_linger();
            }
            end
        }
    };
    if end == End::HalfOpen {
        let _ = modes.wait_for(|mode| *mode != Mode::HalfOpen).await;
    }
    if end != End::Close {
        let _ = client.set_zero_linger();
    }
}

/// Connects to the server once the mode allows it.
async fn connect(client: &mut TcpStream, target: u16, modes: &mut watch::Receiver<Mode>) -> Result<TcpStream, End> {
    loop {
        let mode = *modes.borrow_and_update();
        match mode {
            Mode::Pass | Mode::Delay(_) => {
                return TcpStream::connect(("127.0.0.1", target)).await.map_err(|_| End::Reset);
            }
            Mode::Cut => return Err(End::Close),
            Mode::Reset => return Err(End::Reset),
            Mode::HalfOpen => return Err(End::HalfOpen),
            Mode::Hold => modes.changed().await.map_err(|_| End::Close)?,
            Mode::Swallow => {
                let (mut reader, mut lost) = (client.split().0, vec![0; 4_096]);
                let swallowing = async { while reader.read(&mut lost).await.is_ok_and(|length| length > 0) {} };
                tokio::select! {
                    () = swallowing => return Err(End::Close),
                    _ = modes.changed() => return Err(End::Reset),
                }
            }
        }
    }
}

async fn relay(client: &mut TcpStream, server: &mut TcpStream, modes: &watch::Receiver<Mode>) -> End {
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    tokio::select! {
        end = pump(from_client, to_server, modes.clone()) => end,
        end = pump(from_server, to_client, modes.clone()) => end,
    }
}

/// Carries data in one direction.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut modes: watch::Receiver<Mode>) -> End {
    let mut data = vec![0; 16_384];
    let mut has_lost = false;
    loop {
        let mode = *modes.borrow_and_update();
        match mode {
            Mode::Cut => return End::Close,
            Mode::HalfOpen => return End::HalfOpen,
            Mode::Reset => return End::Reset,
            _ if has_lost && mode != Mode::Swallow => return End::Reset,
            _ => {}
        }
        let length: io::Result<usize> = tokio::select! {
            biased;
            changed = modes.changed() => if changed.is_ok() { continue } else { return End::Close },
            length = from.read(&mut data), if mode != Mode::Hold => length,
        };
        let Ok(length @ 1..) = length else { return End::Close };
        match mode {
            Mode::Swallow => {
                has_lost = true;
                continue;
            }
            Mode::Delay(time) => sleep(time).await,
            _ => {}
        }
        if to.write_all(&data[..length]).await.is_err() {
            return End::Close;
        }
    }
}
