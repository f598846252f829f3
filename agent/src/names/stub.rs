//! The resolver of this host's users: it knows the zone `virtuoso` and refuses the rest, so that a resolver that asks
//! it for the zone alone (systemd-resolved, dnsmasq) or first of all finds what is here.

use crate::config::DnsListen;
use crate::core::Handle;
use anyhow::Context;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use virtuoso_overlay::wire::dns::TCP_BYTES_MAX;

/// A question is a name and some numbers.
const QUESTION_BYTES_MAX: usize = 1232;
/// Connections at once: programs use one for an answer that was too long for UDP.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may say nothing.
const IDLE_TIME: Duration = Duration::from_secs(5);

/// Serves until the agent stops. An address that nobody asked for may be taken.
pub async fn serve(core: Handle, listen: DnsListen) {
    let Some(address) = listen.address() else { return };
    let sockets = async {
        let udp = UdpSocket::bind(address).await?;
        std::io::Result::Ok((udp, TcpListener::bind(address).await?))
    };
    match sockets.await {
        Ok((udp, tcp)) => {
            tracing::debug!(%address, "Names are resolved here");
            tokio::join!(serve_udp(&core, udp), serve_tcp(&core, tcp));
        }
        Err(error) if listen.is_asked_for() => {
            tracing::warn!("Can't resolve names at {address}: {error}. Set `dns.listen` to another address, or to off");
        }
        Err(error) => tracing::info!("Names are not resolved at {address}: {error}"),
    }
}

async fn serve_udp(core: &Handle, socket: UdpSocket) {
    let mut buffer = [0; QUESTION_BYTES_MAX];
    loop {
        let (bytes, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // What the last answer met on its way.
            Err(error) => {
                tracing::debug!("Can't receive a question: {error}");
                continue;
            }
        };
        let question = buffer[..bytes].to_vec();
        // Without a core the agent is stopping.
        let Ok(answer) = core.call(move |core| core.answer_dns(&question, None)).await else { return };
        if let Some(answer) = answer
            && let Err(error) = socket.send_to(&answer, from).await
        {
            tracing::debug!(%from, "Can't answer a question: {error}");
        }
    }
}

async fn serve_tcp(core: &Handle, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!("Can't take a connection: {error}");
                continue;
            }
        };
        let core = core.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(&core, stream, from).await {
                tracing::debug!(%from, "A resolver's connection ended: {error:#}");
            }
            drop(place);
        });
    }
}

/// Answers the questions of one connection.
async fn converse(core: &Handle, mut stream: TcpStream, from: SocketAddr) -> anyhow::Result<()> {
    loop {
        let question = async {
            let bytes = usize::from(stream.read_u16().await?);
            let mut question = vec![0; bytes.min(QUESTION_BYTES_MAX)];
            stream.read_exact(&mut question).await?;
            std::io::Result::Ok((bytes, question))
        };
        let (bytes, question) = tokio::time::timeout(IDLE_TIME, question).await.context("It said nothing")??;
        anyhow::ensure!(bytes <= QUESTION_BYTES_MAX, "{from} asks {bytes} bytes");
        let answer = core.call(move |core| core.answer_dns(&question, Some(TCP_BYTES_MAX))).await?;
        let answer = answer.context("That is no question")?;
        let length = u16::try_from(answer.len()).context("The answer is too long")?;
        tokio::time::timeout(IDLE_TIME, async {
            stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat()).await
        })
        .await
        .context("It takes no answer")??;
    }
}
