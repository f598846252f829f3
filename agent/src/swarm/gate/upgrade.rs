//! Which protocols a gate offers on a stream: none, the knock, those behind the gate, or both.

use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::StreamProtocol;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::Stream;
use libp2p::swarm::handler::{InboundUpgradeSend, OutboundUpgradeSend, UpgradeInfoSend};

/// The protocols offered. A closed gate offers none.
pub struct GateUpgrade<U> {
    pub(super) knock: Option<StreamProtocol>,
    pub(super) inner: Option<U>,
}

/// A protocol's name, and whose it is.
#[derive(Clone)]
pub enum Name<N> {
    /// The gate's own.
    Knock(StreamProtocol),
    /// Of a protocol behind the gate.
    Inner(N),
}

/// A stream whose protocol is agreed.
pub enum Upgraded<S> {
    /// The other side's gate is open.
    Knock,
    /// A stream for a protocol behind the gate.
    Inner(S),
}

impl<N: AsRef<str>> AsRef<str> for Name<N> {
    fn as_ref(&self) -> &str {
        match self {
            Self::Knock(protocol) => protocol.as_ref(),
            Self::Inner(name) => name.as_ref(),
        }
    }
}

impl<U: UpgradeInfoSend> UpgradeInfo for GateUpgrade<U> {
    type Info = Name<U::Info>;
    type InfoIter = std::vec::IntoIter<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        let inner = self.inner.iter().flat_map(|inner| inner.protocol_info().map(Name::Inner));
        let names: Vec<_> = self.knock.iter().cloned().map(Name::Knock).chain(inner).collect();
        names.into_iter()
    }
}

const OFFERED: &str = "only a name that was offered is agreed on";

impl<U: InboundUpgradeSend> InboundUpgrade<Stream> for GateUpgrade<U> {
    type Output = Upgraded<U::Output>;
    type Error = U::Error;
    type Future = BoxFuture<'static, Result<Self::Output, U::Error>>;

    fn upgrade_inbound(self, stream: Stream, name: Self::Info) -> Self::Future {
        match name {
            Name::Knock(_) => std::future::ready(Ok(Upgraded::Knock)).boxed(),
            Name::Inner(name) => {
                let inner = self.inner.expect(OFFERED).upgrade_inbound(stream, name);
                inner.map(|result| result.map(Upgraded::Inner)).boxed()
            }
        }
    }
}

impl<U: OutboundUpgradeSend> OutboundUpgrade<Stream> for GateUpgrade<U> {
    type Output = Upgraded<U::Output>;
    type Error = U::Error;
    type Future = BoxFuture<'static, Result<Self::Output, U::Error>>;

    fn upgrade_outbound(self, stream: Stream, name: Self::Info) -> Self::Future {
        match name {
            Name::Knock(_) => std::future::ready(Ok(Upgraded::Knock)).boxed(),
            Name::Inner(name) => {
                let inner = self.inner.expect(OFFERED).upgrade_outbound(stream, name);
                inner.map(|result| result.map(Upgraded::Inner)).boxed()
            }
        }
    }
}
