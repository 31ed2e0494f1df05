//! The figures, as a table for people and as JSON for programs. It must not know how they were measured.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::Failure;

/// The variant that all other variants are compared with.
pub const BASELINE: &str = "bare";

/// Below this part of its core the proxy was not the bottleneck.
const BUSY_ENOUGH: f64 = 0.9;

/// One round of one variant, or the medians of its rounds.
#[derive(Clone, Serialize)]
pub struct Measurement {
    /// Answers in a second, refusals included.
    pub requests_per_second: f64,
    /// Median time of an answer, in microseconds.
    pub p50_us: f64,
    /// 99th percentile of it, in microseconds.
    pub p99_us: f64,
    /// CPU time of the proxy process for one request, in microseconds.
    pub cpu_us_per_request: f64,
    /// The part of one core the proxy used, 0 to 1.
    pub busy: f64,
    /// Commands sent to Redis for one request.
    pub redis_operations_per_request: f64,
    /// The part of all answers that were refusals, 0 to 1.
    pub refused: f64,
    /// Calls of each Redis command in a round, those inside scripts included.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub redis_calls: BTreeMap<String, u64>,
}

impl Measurement {
    fn median(rounds: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| {
            median(&sorted(rounds.iter().map(figure))).unwrap_or(f64::NAN)
        };
        Self {
            requests_per_second: of(|round| round.requests_per_second),
            p50_us: of(|round| round.p50_us),
            p99_us: of(|round| round.p99_us),
            cpu_us_per_request: of(|round| round.cpu_us_per_request),
            busy: of(|round| round.busy),
            redis_operations_per_request: of(|round| round.redis_operations_per_request),
            refused: of(|round| round.refused),
            redis_calls: BTreeMap::new(),
        }
    }
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    what: &'static str,
    median: Measurement,
    /// Requests/s relative to the mean of the bare proxy just before and after. For the bare proxy itself, relative to its
    /// run before in the same round: how much the machine's speed changes.
    ratio_to_bare: Option<Ratio>,
    rounds: Vec<Measurement>,
    /// The ratios of single rounds.
    #[serde(skip)]
    ratios: Vec<f64>,
}

impl Row {
    fn add(&mut self, round: Measurement, ratio: Option<f64>) {
        self.rounds.push(round);
        self.ratios.extend(ratio);
        self.median = Measurement::median(&self.rounds);
        self.ratio_to_bare = Ratio::of(&self.ratios);
    }
}

/// All variants of one run, in the order they were first measured.
#[derive(Serialize)]
pub struct Report {
    seconds: u64,
    connections: u32,
    placement: String,
    variants: Vec<Row>,
}

/// How one figure compares with another over all rounds.
#[derive(Serialize)]
struct Ratio {
    least: f64,
    median: f64,
    most: f64,
}

impl Ratio {
    fn of(rounds: &[f64]) -> Option<Self> {
        let ratios = sorted(rounds.iter().copied());
        Some(Self { least: *ratios.first()?, median: median(&ratios)?, most: *ratios.last()? })
    }
}

fn sorted(figures: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures
}

/// The middle of sorted figures, or the mean of the two in the middle.
fn median(sorted: &[f64]) -> Option<f64> {
    let (low, high) =
        (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((low + high) / 2.0)
}

impl Report {
    /// Nothing measured yet.
    pub fn new(seconds: u64, connections: u32, placement: String) -> Self {
        Self { seconds, connections, placement, variants: Vec::new() }
    }

    /// Takes a round: variants, their descriptions and their figures, in the order of time.
    pub fn add_round(&mut self, measured: Vec<(&'static str, &'static str, Measurement)>) {
        let baseline_at = |at: Option<usize>| {
            let (name, _, round) = measured.get(at?)?;
            (*name == BASELINE).then_some(round.requests_per_second)
        };
        for (at, (name, what, round)) in measured.iter().enumerate() {
            let near = match (baseline_at(at.checked_sub(1)), baseline_at(Some(at + 1))) {
                (Some(before), Some(after)) => Some((before + after) / 2.0),
                _ => baseline_at(at.checked_sub(2)),
            };
            let ratio = near.map(|baseline| round.requests_per_second / baseline);
            self.row(name, what).add(round.clone(), ratio);
        }
    }

    fn row(&mut self, name: &'static str, what: &'static str) -> &mut Row {
        let index = self.variants.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.variants.push(Row {
                name,
                what,
                median: Measurement::median(&[]),
                ratio_to_bare: None,
                rounds: Vec::new(),
                ratios: Vec::new(),
            });
            self.variants.len() - 1
        });
        &mut self.variants[index]
    }

    /// Writes everything as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<(), Failure> {
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        Ok(fs::write(file, serde_json::to_string_pretty(self)? + "\n")?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.variants.last().map_or(0, |row| row.rounds.len());
        writeln!(
            out,
            "\nmedians of {rounds} rounds of {} s, {} connections, {}\n",
            self.seconds, self.connections, self.placement
        )?;
        writeln!(
            out,
            "{:<14} {:>10} {:>17} {:>8} {:>8} {:>11} {:>6} {:>10} {:>8}  what",
            "variant",
            "requests/s",
            "of bare",
            "p50 µs",
            "p99 µs",
            "CPU µs/req",
            "busy",
            "Redis/req",
            "refused"
        )?;
        for row in &self.variants {
            let median = &row.median;
            let ratio = match &row.ratio_to_bare {
                Some(Ratio { least, median, most }) => {
                    format!("{median:.2} ({least:.2}-{most:.2})")
                }
                None => "-".to_owned(),
            };
            writeln!(
                out,
                "{:<14} {:>10.0} {:>17} {:>8.0} {:>8.0} {:>11.1} {:>5.0}% {:>10.4} {:>7.1}%  {}",
                row.name,
                median.requests_per_second,
                ratio,
                median.p50_us,
                median.p99_us,
                median.cpu_us_per_request,
                median.busy * 100.0,
                median.redis_operations_per_request,
                median.refused * 100.0,
                row.what
            )?;
        }
        let idle = self.variants.iter().filter(|row| row.median.busy < BUSY_ENOUGH);
        let idle: Vec<_> = idle.map(|row| row.name).collect();
        if !idle.is_empty() {
            writeln!(
                out,
                "\nthe proxy was not the bottleneck (others used its core, or it waited): {}; trust CPU µs/req only",
                idle.join(", ")
            )?;
        }
        Ok(())
    }
}
