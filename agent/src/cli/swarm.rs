//! `virtuoso swarm`: members, and the way in.

use super::format::{seconds, yes};
use super::table::Table;
use super::{Asking, output};
use crate::control::client::{Call, parse};
use crate::control::model::{Approve, Invite, InviteRequest, Member, PendingHost};
use crate::name::Name;
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Subcommand)]
pub(super) enum SwarmVerb {
    /// Hosts that the swarm has admitted
    #[command(after_help = "Examples:\n  virtuoso swarm members")]
    Members,
    /// Hosts that wait to be admitted
    #[command(after_help = "Examples:\n  virtuoso swarm pending\n  virtuoso swarm approve beta")]
    Pending,
    /// Admit a host that waits
    #[command(after_help = "Examples:\n  virtuoso swarm approve beta\n  virtuoso swarm approve 12D3KooW...")]
    Approve {
        /// Its id, or its name if only one waits under that name
        peer: String,
    },
    /// Make a ticket: whoever has it can join once
    #[command(after_help = "\
Examples:
  virtuoso swarm invite
  virtuoso swarm invite --valid 3600 --name beta
  virtuoso agent --bootstrap \"$(ssh alpha virtuoso swarm invite)\"")]
    Invite {
        /// Seconds that it can be used [default: 86400]
        #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        valid: Option<u64>,
        /// The only name that it admits
        #[arg(long)]
        name: Option<Name>,
    },
}

impl SwarmVerb {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        match self {
            Self::Members => asking.show(Call::get("/v1/swarm/members"), members).await,
            Self::Pending => asking.show(Call::get("/v1/swarm/pending"), pending).await,
            Self::Approve { peer } => {
                let call = Call::post("/v1/swarm/approve", &Approve { peer });
                asking.tell(call, |member: Member| format!("Admitted {} ({})", member.name, member.id)).await
            }
            Self::Invite { valid, name } => {
                let call = Call::post("/v1/swarm/invite", &InviteRequest { valid_s: valid, name });
                let json = asking.client.call(call).await?;
                if asking.json {
                    return asking.show_json(&json);
                }
                // Only the ticket goes to stdout, so that it can be handed on.
                let invite: Invite = parse(&json)?;
                output::line(&invite.ticket)?;
                output::hint(&format!("Joins one host until {}: virtuoso agent --bootstrap TICKET", invite.expires));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn members(members: Vec<Member>) -> Table {
    let mut table = Table::new(&["NAME", "ADMIN", "CONNECTED", "EXPIRES", "ID"]);
    for member in members {
        table.row([member.name, yes(member.admin), yes(member.connected), member.expires, member.id.to_string()]);
    }
    table
}

fn pending(hosts: Vec<PendingHost>) -> Table {
    let mut table = Table::new(&["NAME", "ADDRESS", ">AGE", "ID"]);
    for host in hosts {
        table.row([host.name, host.address, seconds(host.age_s), host.id.to_string()]);
    }
    table
}
