//! `walden wal list` and `walden wal show`.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;

use walden_engine::wal::{ArchivedWal, WalListRequest, WalListing, WalShowRequest, show};

use crate::arguments::{WalCommand, WalListArguments, WalShowArguments};
use crate::config::Settings;
use crate::exit::common;
use crate::problem::Problem;
use crate::render;
use crate::walden::{call, print, written};

pub(crate) fn run(settings: Settings, command: WalCommand) -> Result<u8, Problem> {
    match command {
        WalCommand::List(arguments) => run_list(settings, &arguments),
        WalCommand::Show(arguments) => run_show(settings, &arguments),
    }
}

/// Prints while it lists: an archive may have millions of segments.
fn run_list(settings: Settings, arguments: &WalListArguments) -> Result<u8, Problem> {
    let request = WalListRequest {
        repositories: settings.repositories,
        cluster: settings.cluster,
        system: arguments.system_identifier,
        timeline: arguments.timeline,
    };
    let mut page = Page {
        out: BufWriter::new(io::stdout()),
        json: arguments.json,
        files: 0,
        end: Ok(()),
    };
    call(async {
        let listing = WalListing::open(&request).await?;
        if page.begin(&listing).is_continue() {
            listing.each(|file| page.file(&file)).await?;
        }
        Ok::<_, walden_engine::wal::WalError>(())
    })?;
    page.finish()?;
    Ok(common::OK)
}

/// The list as far as it is printed.
struct Page<W> {
    out: W,
    json: bool,
    files: u64,
    end: io::Result<()>,
}

impl<W: Write> Page<W> {
    fn begin(&mut self, listing: &WalListing) -> ControlFlow<()> {
        match self.json {
            // The header of the table stands above the first file, and not above none.
            false => ControlFlow::Continue(()),
            true => self.put(render::wal_json_begin(&listing.identity, listing.out())),
        }
    }

    fn file(&mut self, file: &ArchivedWal) -> ControlFlow<()> {
        let first = self.files == 0;
        self.files += 1;
        match (self.json, first) {
            (false, false) => {}
            (false, true) => self.put(Ok(render::wal_header()))?,
            (true, false) => self.put(Ok(",".to_owned()))?,
            (true, true) => {}
        }
        self.put(match self.json {
            true => render::wal_json_line(file),
            false => Ok(render::wal_line(file)),
        })
    }

    fn put(&mut self, text: Result<String, serde_json::Error>) -> ControlFlow<()> {
        let put = text
            .map_err(io::Error::from)
            .and_then(|text| self.out.write_all(text.as_bytes()));
        match put {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                self.end = Err(e);
                ControlFlow::Break(())
            }
        }
    }

    fn finish(mut self) -> Result<(), Problem> {
        let end = match self.json {
            true => render::WAL_JSON_END,
            false if self.files == 0 => "nothing is archived yet\n",
            false => "",
        };
        let end = std::mem::replace(&mut self.end, Ok(()))
            .and_then(|()| self.out.write_all(end.as_bytes()))
            .and_then(|()| self.out.flush());
        written(end)
    }
}

fn run_show(settings: Settings, arguments: &WalShowArguments) -> Result<u8, Problem> {
    let request = WalShowRequest {
        repositories: settings.repositories,
        cluster: settings.cluster,
        system: arguments.system_identifier,
        segment: arguments.segment,
        read: arguments.read,
    };
    let segment = call(show(&request))?;
    print(&match arguments.json {
        true => render::segment_json(&segment).map_err(Problem::failure)?,
        false => render::segment_page(&segment),
    })?;
    Ok(common::OK)
}
