//! What goes wrong: partitions, killed agents, crashed machines, goodbyes.

use crate::clock::SECOND;
use crate::world::{Event, World};
use virtuoso_overlay::table::Key;

/// Something that happens to hosts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The agent of a host starts, if it does not run.
    Start(usize),
    Partition,
    Heal,
    /// An agent is killed; the guests of its host run on.
    Kill,
    /// A machine goes, with its guests.
    Crash,
    /// An agent says goodbye.
    Goodbye,
    /// It has said goodbye.
    Gone {
        host: usize,
        life: u32,
    },
}

impl World {
    pub(crate) fn begin_faults(&mut self) {
        let first = |world: &mut Self, mean_s: u64, fault: Fault| {
            if mean_s > 0 {
                let delay = CALM_START + world.rng.wait(mean_s * SECOND);
                world.schedule(delay, Event::Fault(fault));
            }
        };
        first(self, self.options.partition_mean_s, Fault::Partition);
        first(self, self.options.kill_mean_s, Fault::Kill);
        first(self, self.options.crash_mean_s, Fault::Crash);
        first(self, self.options.goodbye_mean_s, Fault::Goodbye);
    }

    pub(crate) fn on_fault(&mut self, fault: Fault) {
        match fault {
            Fault::Start(host) if self.hosts[host].agent.is_none() => self.start(host),
            Fault::Start(_) => {}
            Fault::Gone { host, life } => {
                if self.hosts[host].life == life && self.hosts[host].agent.is_some() {
                    self.close_connections(host);
                    self.drop_links(host, true);
                    self.stop(host);
                }
            }
            Fault::Heal => self.heal(),
            Fault::Partition if self.unrest => {
                let parts = (0..self.hosts.len()).map(|_| self.rng.below(2) as u8).collect();
                self.partition(parts);
                let length = self.rng.wait(self.options.partition_length_s * SECOND);
                self.schedule(length, Event::Fault(Fault::Heal));
                self.again(length, self.options.partition_mean_s, fault);
            }
            Fault::Kill if self.unrest => {
                if let Some(host) = self.random_agent() {
                    self.kill(host);
                }
                self.again(0, self.options.kill_mean_s, fault);
            }
            Fault::Crash if self.unrest => {
                if let Some(host) = self.random_agent() {
                    self.crash(host);
                }
                self.again(0, self.options.crash_mean_s, fault);
            }
            Fault::Goodbye if self.unrest => {
                if let Some(host) = self.random_agent() {
                    self.say_goodbye(host);
                }
                self.again(0, self.options.goodbye_mean_s, fault);
            }
            Fault::Partition | Fault::Kill | Fault::Crash | Fault::Goodbye => {}
        }
    }

    fn again(&mut self, after: u64, mean_s: u64, fault: Fault) {
        let delay = after + self.rng.wait(mean_s * SECOND);
        self.schedule(delay, Event::Fault(fault));
    }

    /// Cuts the world.
    pub fn partition(&mut self, parts: Vec<u8>) {
        let shape = parts.iter().fold(1, |shape: u64, part| (shape << 1) ^ (shape >> 63) ^ u64::from(*part));
        self.note("partition", 0, 0, shape);
        self.fabric.cut(self.now, parts);
        self.expect_timeouts();
    }

    /// Makes the world whole.
    pub fn heal(&mut self) {
        self.note("heal", 0, 0, 0);
        self.fabric.heal();
    }

    fn random_agent(&mut self) -> Option<usize> {
        let running: Vec<usize> = (0..self.hosts.len()).filter(|host| self.hosts[*host].agent.is_some()).collect();
        self.rng.pick(&running).copied()
    }

    /// Ends an agent without a word. It starts again after a while.
    pub fn kill(&mut self, host: usize) {
        self.note("kill", host, 0, 0);
        self.connections.clear(host);
        self.drop_links(host, false);
        self.stop(host);
    }

    fn crash(&mut self, host: usize) {
        self.note("crash", host, 0, 0);
        self.evacuate(host);
        self.kill(host);
    }

    fn say_goodbye(&mut self, host: usize) {
        self.note("goodbye", host, 0, 0);
        let now = self.hosts[host].now(self.now);
        let life = self.hosts[host].life;
        let Some(agent) = self.hosts[host].working() else { return };
        agent.node.take_back(now, Key::Host);
        self.settle(host);
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.leaving = true;
        }
        self.schedule(GOODBYE_TIME, Event::Fault(Fault::Gone { host, life }));
    }

    fn stop(&mut self, host: usize) {
        self.hosts[host].agent = None;
        self.fabric.set_alive(self.now, host, false);
        self.expect_timeouts();
        let delay = self.rng.wait(self.options.downtime_s * SECOND);
        self.schedule(delay, Event::Fault(Fault::Start(host)));
    }

    /// Ends all faults for good: from now on everything has to come into order.
    pub fn make_peace(&mut self) {
        self.note("peace", 0, 0, 0);
        self.unrest = false;
        self.heal();
        self.fabric.calm();
        self.settle_guests();
        for host in 0..self.hosts.len() {
            self.schedule(SECOND, Event::Fault(Fault::Start(host)));
        }
    }
}

/// Faults begin when the swarm has come together.
const CALM_START: u64 = 8 * SECOND;
/// An agent waits a little so that its goodbye gets out.
const GOODBYE_TIME: u64 = SECOND / 5;
