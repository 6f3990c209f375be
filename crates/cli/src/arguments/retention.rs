//! The options of `walden expire`, `walden pin` and `walden unpin`.

use clap::Args;
use walden_model::BackupId;
use walden_model::retention::Pin;
use walden_model::target::parse_target_time;
use walden_pg::SystemIdentifier;

#[derive(Debug, Args)]
pub struct ExpireArguments {
    /// Print what would go and what would stay, by which rule, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Only this repository [default: each that is configured, by itself]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Only this one of the cluster's system identifiers [default: each, by itself]
    #[arg(long, value_name = "ID")]
    pub system_identifier: Option<SystemIdentifier>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PinArguments {
    /// The backup
    pub backup: BackupId,
    /// Until when: a time with a zone, as in 2027-01-31T00:00:00Z, a date, or forever
    #[arg(long, value_name = "TIME", value_parser = until)]
    pub until: Pin,
    /// Only in this repository [default: in each that has the backup]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

#[derive(Debug, Args)]
pub struct UnpinArguments {
    /// The backup
    pub backup: BackupId,
    /// Only in this repository [default: in each that has the backup]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// A date is its end, in UTC: who pins until a day means that day, too.
fn until(text: &str) -> Result<Pin, String> {
    if text == "forever" {
        return Ok(Pin::Forever);
    }
    if let Ok(date) = text.parse::<jiff::civil::Date>()
        && text.len() == 10
    {
        let next = date.tomorrow().map_err(|e| e.to_string())?;
        let end = next.to_zoned(jiff::tz::TimeZone::UTC);
        return end
            .map(|end| Pin::Until(end.timestamp()))
            .map_err(|e| e.to_string());
    }
    parse_target_time(text)
        .map(Pin::Until)
        .map_err(|e| format!("{e}; or write a date, or forever"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_until_a_time_or_the_end_of_a_day_or_forever() {
        let at = |text: &str| Ok(Pin::Until(text.parse().expect("a time")));
        assert_eq!(until("forever"), Ok(Pin::Forever));
        assert_eq!(until("2027-01-31"), at("2027-02-01T00:00:00Z"));
        assert_eq!(until("2027-01-31 12:00+01"), at("2027-01-31T11:00:00Z"));
        for wrong in ["", "soon", "2027-01-31 12:00", "2027-02-30"] {
            assert!(until(wrong).is_err(), "{wrong:?} is no time");
        }
    }
}
