//! Long work: a bar on a terminal, silence elsewhere, and Ctrl-C cancels.

use crate::control::client::{Call, Client, ClientError, parse};
use crate::control::model::Progress;
use crate::control::problem::ApiError;
use anyhow::bail;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// Does the work and returns its JSON.
pub(super) async fn follow(client: &Client, call: Call, doing: &'static str) -> anyhow::Result<Bytes> {
    tokio::select! {
        result = work(client, call, doing) => Ok(result?),
        // Leaving closes the connection, and with that the agent cancels the work.
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            bail!("Cancelled")
        }
    }
}

async fn work(client: &Client, call: Call, doing: &'static str) -> Result<Bytes, ClientError> {
    if !std::io::stderr().is_terminal() {
        return client.call(call).await;
    }
    let mut stream = client.stream(call, None).await?;
    let bar = bar(doing);
    while let Some(event) = stream.next().await? {
        match event.name.as_str() {
            "progress" => {
                let progress: Progress = parse(event.data.as_bytes())?;
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
            }
            "done" => {
                bar.finish_and_clear();
                return Ok(event.data.into());
            }
            "error" => {
                bar.finish_and_clear();
                return Err(parse::<ApiError>(event.data.as_bytes())?.into());
            }
            _ => {}
        }
    }
    Err(ClientError::Broken("it ended before the work".into()))
}

fn bar(doing: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    )
    .expect("the template is valid")
    .progress_chars("=> ");
    ProgressBar::new(0).with_style(style).with_message(doing)
}
