use super::*;
use clap::CommandFactory;

#[test]
fn the_command_line_is_consistent_and_explained() {
    Cli::command().debug_assert();
    fn explained(command: &clap::Command) {
        let leaf = command.get_subcommands().next().is_none();
        let name = command.get_name();
        assert!(command.get_about().is_some(), "{name} has no help");
        let examples = command.get_after_help().is_some_and(|help| help.to_string().contains("Examples:"));
        assert!(!leaf || examples, "{name} has no examples");
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            assert!(arg.get_help().is_some(), "{name} {} has no help", arg.get_id());
        }
        command.get_subcommands().for_each(explained);
    }
    explained(&Cli::command());
}

/// Else clap takes the minus for an option and advises nonsense.
#[test]
fn a_negative_number_is_refused_as_a_value() {
    for args in [
        &["net", "create", "red", "--rate-mbit", "-1"][..],
        &["net", "create", "red", "--mtu", "-1"],
        &["host", "find", "--vcpus", "-1"],
        &["swarm", "invite", "--valid", "-1"],
        &["vm", "stop", "a", "--timeout", "-1"],
        &["vm", "set", "a", "--cpu-limit", "-1"],
        &["vm", "set", "a", "--iops-limit", "-1"],
    ] {
        let refused = Cli::try_parse_from([&["virtuoso"], args].concat()).err().map(|error| error.to_string());
        let told = refused.clone().is_some_and(|text| text.contains("invalid value '-1'"));
        assert!(told, "{args:?}: {refused:?}");
    }
}

fn exit(args: &[&str]) -> ExitCode {
    let args = std::iter::once("virtuoso").chain(args.iter().copied()).map(Into::into);
    run(args, |_| Ok(()))
}

/// `ExitCode` can't be compared, but shown.
fn assert_exit(args: &[&str], code: u8) {
    assert_eq!(format!("{:?}", exit(args)), format!("{:?}", ExitCode::from(code)), "{args:?}");
}

#[test]
fn exit_codes() {
    assert_exit(&["frobnicate"], USAGE);
    assert_exit(&["net", "create", "Not A Name"], USAGE);
    assert_exit(&["net", "create", "red", "--congestion", "bbr"], USAGE);
    assert_exit(&["host", "find", "--memory", "8GB"], USAGE);
    assert_exit(&["net", "attach", "blue", "--interface", "a", "--uplink", "b"], USAGE);
    assert_exit(&["agent", "--bootstrap", "192.0.2.1:4747"], USAGE);
    assert_exit(&["vm", "create", "a", "--kernel", "/k", "--memory", "1GiB", "--wait=long"], USAGE);
    assert_exit(&["vm", "create", "a", "--kernel", "/k", "--memory", "1GiB", "--wait", "--stopped"], USAGE);
    assert_exit(&["agent", "--config", "/nonexistent.toml"], FAILED);
    assert_exit(&["status", "--socket", "/nonexistent/v.sock"], UNREACHABLE);
    assert_exit(&["--help"], 0);
}

#[test]
fn refusals_have_codes_of_their_own() {
    use crate::control::problem::ApiError;
    let code = |problem: ApiError| format!("{:?}", fail(&anyhow::Error::new(ClientError::Refused(problem))));
    assert_eq!(code(ApiError::not_found("x")), format!("{:?}", ExitCode::from(NOT_FOUND)));
    assert_eq!(code(ApiError::conflict("x")), format!("{:?}", ExitCode::from(FAILED)));
    let gone = anyhow::Error::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
    assert_eq!(format!("{:?}", fail(&gone)), format!("{:?}", ExitCode::SUCCESS));
}

#[test]
fn flags_reach_the_agent() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "name = \"file\"\nmdns = false\nlisten = \"[::]:5000\"").unwrap();
    let file = file.path().to_str().unwrap();
    let args = [
        "virtuoso",
        "agent",
        "--config",
        file,
        "--name",
        "flag",
        "--state-dir",
        "/s",
        "--socket",
        "/s/v.sock",
        "--bootstrap",
        "/ip4/192.0.2.1/udp/1/quic-v1",
        "--bootstrap",
        "virtuoso-ticket:abc",
        "--label",
        "gpu=1",
        "--log-level",
        "error",
    ];
    let mut started = None;
    run(args.map(Into::into), |start| {
        started = Some(start.config);
        Ok(())
    });
    let config = started.unwrap();
    assert_eq!((&*config.name, config.mdns, config.listen.port()), ("flag", false, 5000));
    assert_eq!(config.socket, std::path::Path::new("/s/v.sock"));
    assert_eq!((config.bootstrap.len(), config.labels["gpu"].as_str()), (2, "1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_ask_the_agent() {
    let served = crate::control::tests::served();
    for (line, code) in [
        ("net list", 0),
        ("net show blue", 0),
        ("net show green", NOT_FOUND),
        ("net create red --mtu 9000 --json", 0),
        ("net create red --congestion delay --rate-mbit 50", 0),
        ("net attach blue --interface tap0 --mac 52:54:00:12:34:56", 0),
        ("net detach blue", 0),
        ("net delete blue", 0),
        ("host list", 0),
        ("host find --vcpus 4 --label gpu=1 --label ssd --explain", 0),
        ("port list", 0),
        ("fdb blue", 0),
        ("links", 0),
        ("peers", 0),
        ("status", FAILED),
        ("image list", 0),
        ("image show debian-12", 0),
        ("image import ./x.raw --name debian-12", 0),
        ("image verify debian-12", FAILED),
        ("image remove debian-12", 0),
        ("vm list", 0),
        ("swarm members", 0),
        ("swarm pending", 0),
        ("swarm approve beta", NOT_FOUND),
        ("swarm invite --valid 60", 0),
    ] {
        let socket = served.path.to_str().unwrap().to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            let args: Vec<&str> = line.split(' ').chain(["--socket", &socket]).collect();
            format!("{:?}", exit(&args))
        });
        assert_eq!(asked.await.unwrap(), format!("{:?}", ExitCode::from(code)), "{line}");
    }
}
