//! `aeir serve`.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;

use crate::flags::ServeFlags;
use crate::serve::door::{Door, Ended, Patience};
use crate::serve::{ApiKey, Library, Server, begin_measures, router};
use crate::terminal::Terminal;

/// Serves an index until a signal asks to end.
pub(crate) fn run(flags: &ServeFlags, terminal: Terminal) -> anyhow::Result<()> {
    let key = ApiKey::read(flags.api_key.as_deref(), flags.api_key_file.as_deref())?;
    let patience = Patience {
        head: flags.limits.head_timeout,
        shutdown: flags.limits.shutdown_timeout,
        ..Patience::default()
    };
    // A port that is taken should be known before a large index is read.
    let door = Door::open(&flags.door, patience)?;
    if door.is_public() && key.is_none() {
        terminal.warn(&format!(
            "everybody who can reach {} can search this index: --api-key-file FILE asks for a key",
            door.address()
        ));
    }
    let device = flags.device.device.open(&terminal)?;
    let measures = begin_measures()?;
    let library = Arc::new(Library::open(&flags.index, &device)?);
    let items = library.current().items();
    if !flags.reload_every.is_zero() {
        Arc::clone(&library).follow(flags.reload_every, Terminal::new(terminal.is_quiet()))?;
    }
    let locked = key.is_some();
    let server = Server::new(library, flags.limits.clone(), flags.rerank, measures, locked)?;
    let ready = |address| {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "serving http://{address}/\nimages  {items}")
            .and_then(|()| stdout.flush())
            .context("could not write to stdout")
    };
    match door.serve(router(Arc::new(server), key), ready)? {
        Ended::Orderly => terminal.note("ended: everything that had begun was answered"),
        Ended::CutOff => terminal.warn("ended before all requests were answered"),
    }
    Ok(())
}
