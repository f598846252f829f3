//! What the kernel does alone: the bare wire, and VXLAN (neither encrypts).

use anyhow::{Context, Result};

use super::{Connect, LEFT_IP, Peer, RIGHT_IP, Sites};

pub(super) const RAW: Peer = Peer {
    name: "raw",
    about: "the veth itself in both bridges",
    tools: &[],
    guest_mtu: 1500,
    connect: Connect::Sites(|sites| {
        for site in [&sites.left, &sites.right] {
            site.bridge("wan")?;
        }
        Ok(Vec::new())
    }),
};

pub(super) const VXLAN: Peer = Peer {
    name: "vxlan",
    about: "kernel VXLAN, no encryption",
    tools: &[],
    guest_mtu: 1450,
    connect: Connect::Sites(|sites| vxlan(sites).map(|()| Vec::new())),
};

fn vxlan(sites: &Sites) -> Result<()> {
    for (site, remote) in [(&sites.left, RIGHT_IP), (&sites.right, LEFT_IP)] {
        let options = format!("id 77 dstport 4789 local {} remote {remote} dev wan", site.ip);
        site.namespace
            .ip(&format!("link add vx0 type vxlan {options}"))
            .context("This kernel has no VXLAN (CONFIG_VXLAN)")?;
        site.bridge("vx0")?;
    }
    Ok(())
}
