//! Keeps a guest from speaking in another's name, in the kernel: by Ethernet address with a locked port of the
//! bridge, by IPv4 address with a filter on the guest's interface.
//!
//! A locked port passes only frames whose source the bridge knows to be behind it, and it learns nothing: the one
//! address there is set by hand. The filter is nftables', where its program is installed; without it the switch still
//! stops what would leave the host.

use super::error::explain;
use super::{Interface, Netdev, bridge_name, tap_name};
use anyhow::Context;
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{LinkBridgePort, LinkUnspec};
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use virtuoso_overlay::ids::{Mac, NetworkId};
use virtuoso_overlay::names::SERVICE_MAC;

impl Netdev {
    /// Lets an interface, whether or not it is in a bridge, speak as `ip` only, if one is given.
    ///
    /// # Errors
    /// If the kernel does not take the filter.
    pub async fn filter(&self, interface: &str, ip: Option<Ipv4Addr>) -> anyhow::Result<()> {
        match ip {
            Some(ip) => filter(&filter_rules(interface, ip)).await,
            None => Ok(()),
        }
    }

    /// Lets a port of the network's bridge speak as `mac` only.
    ///
    /// # Errors
    /// If there is no such port, the kernel has no locked ports (before 5.18), or the right is missing.
    pub async fn lock(&self, network: NetworkId, port: &str, mac: Mac) -> anyhow::Result<()> {
        self.set_fdb(port, mac).await?;
        let index = self.interface(port).await?.index;
        // What was learned there before would go on to pass.
        let message = LinkBridgePort::new(index).learning(false).locked(true).fdb_flush().build();
        let bridge = bridge_name(network);
        self.change(message, format!("to lock port {port} of bridge {bridge} to {mac}")).await
    }

    /// Puts an interface into the network's bridge as a port that passes nothing, either way. Not for a moment: what a
    /// bridge floods to a guest that does not run yet, it would get when it does. So the port is switched off until it
    /// is silent.
    ///
    /// # Errors
    /// As those of [`Netdev::attach`] and [`Netdev::lock`].
    pub async fn attach_silent(&self, network: NetworkId, name: &str) -> anyhow::Result<()> {
        let Interface { index, controller, .. } = self.interface(name).await?;
        if controller.is_none() {
            let message = LinkUnspec::new_with_index(index).down().build();
            self.change(message, format!("to switch {name} off")).await?;
        }
        self.attach_as_it_is(network, name).await?;
        // It has no address yet that it could use, or that the bridge would look for there.
        let message = LinkBridgePort::new(index).learning(false).locked(true).fdb_flush();
        let message = message.flood(false).mcast_flood(false).bcast_flood(false).build();
        self.change(message, format!("to silence port {name} of bridge {}", bridge_name(network))).await?;
        let message = LinkUnspec::new_with_index(index).up().build();
        self.change(message, format!("to switch port {name} on")).await
    }

    /// Lets a silent port, of which the kernel's index is known, speak: as `mac` only, if one is given, and hear what
    /// is for that. This is quick. What the bridge floods still passes it by (see
    /// [`virtuoso_engine::GuestPorts::flood`]).
    ///
    /// # Errors
    /// If there is no such port, or the right is missing.
    pub async fn let_speak(
        &self,
        network: NetworkId,
        (port, index): (&str, u32),
        mac: Option<Mac>,
    ) -> anyhow::Result<()> {
        // A port stays locked that may say what its address says, and nothing else.
        if let Some(mac) = mac {
            return self.set_fdb_at(index, port, mac).await;
        }
        let message = LinkBridgePort::new(index).learning(true).locked(false).build();
        self.change(message, format!("to let port {port} of bridge {} speak", bridge_name(network))).await
    }

    /// Removes what [`Netdev::filter`] has left beside the port, which is gone.
    pub async fn unguard(&self, port: &str) {
        let table = table(port);
        if let Err(error) = filter(&format!("add table netdev {table}\ndelete table netdev {table}\n")).await {
            tracing::debug!(port, "Can't remove a filter: {error:#}");
        }
    }

    /// Tells the network's bridge that the service station is behind the agent's TAP, so that what is for it goes
    /// there only.
    ///
    /// # Errors
    /// If there is no TAP, or the right is missing.
    pub async fn show_service(&self, network: NetworkId) -> anyhow::Result<()> {
        self.set_fdb(&tap_name(network), SERVICE_MAC).await
    }

    /// Sets what the bridge can't learn by itself: `mac` is behind `port`.
    async fn set_fdb(&self, port: &str, mac: Mac) -> anyhow::Result<()> {
        let index = self.interface(port).await?.index;
        self.set_fdb_at(index, port, mac).await
    }

    async fn set_fdb_at(&self, index: u32, port: &str, mac: Mac) -> anyhow::Result<()> {
        let request = self.handle.neighbours().add_bridge(index, &mac.0).replace();
        let request = request.state(NeighbourState::Noarp).flags(NeighbourFlags::Controller);
        request.execute().await.map_err(|error| explain(error, format!("to tell the bridge that {mac} is at {port}")))
    }
}

/// The rules for an interface; in place of earlier ones.
fn filter_rules(port: &str, ip: Ipv4Addr) -> String {
    let table = table(port);
    format!(
        "add table netdev {table}\n\
         delete table netdev {table}\n\
         table netdev {table} {{\n\
         chain guard {{\n\
         type filter hook ingress device \"{port}\" priority 0; policy accept;\n\
         ip saddr != {{ 0.0.0.0, {ip} }} counter drop\n\
         arp saddr ip != {{ 0.0.0.0, {ip} }} counter drop\n\
         }}\n\
         }}\n"
    )
}

/// The name of an interface's table: interfaces may have names that nftables does not take.
fn table(port: &str) -> String {
    let plain: String = port.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("virtuoso_{plain}")
}

/// Has the kernel take some rules.
async fn filter(rules: &str) -> anyhow::Result<()> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if !TOLD.swap(true, Ordering::Relaxed) {
                tracing::info!("Without nftables (`nft`) guests of one host can use each other's IP addresses");
            }
            return Ok(());
        }
        other => other.context("Can't run nft")?,
    };
    let mut input = child.stdin.take().context("nft has no input")?;
    input.write_all(rules.as_bytes()).await.context("Can't tell nft the rules")?;
    drop(input);
    let output = child.wait_with_output().await.context("nft broke off")?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    anyhow::ensure!(output.status.success(), "nft does not take the rules: {complaint}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_of_interfaces_stay_in_their_quotes() {
        assert_eq!(table("vm-0badcafe"), "virtuoso_vm_0badcafe");
        let rules = filter_rules("a.b", Ipv4Addr::new(10, 8, 0, 7));
        assert!(rules.contains("device \"a.b\"") && rules.contains("{ 0.0.0.0, 10.8.0.7 }"));
    }
}
