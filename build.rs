//! Gives `tollgate --version` the commit that the program is built from.
//!
//! The variable `TOLLGATE_COMMIT` counts first, for builds without a repository (container images), then git. Where neither
//! knows the commit, it is `unknown`: a build never fails for that reason.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=TOLLGATE_COMMIT");
    let commit = std::env::var("TOLLGATE_COMMIT").ok().filter(|commit| is_plain(commit));
    let commit = commit.or_else(|| {
        // HEAD changes on a checkout, its log on every commit. Inside a package there is neither.
        for file in ["HEAD", "logs/HEAD"] {
            if let Some(path) =
                git(&["rev-parse", "--git-path", file]).filter(|path| Path::new(path).exists())
            {
                println!("cargo:rerun-if-changed={path}");
            }
        }
        git(&["rev-parse", "--short=12", "HEAD"])
    });
    println!("cargo:rustc-env=TOLLGATE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

/// What `git` answers on its first line, when there is a git, a repository and an answer.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_owned)
}

/// Whether `commit` is one non-empty word, so that it can neither be mistaken nor break a line.
fn is_plain(commit: &str) -> bool {
    !commit.is_empty()
        && commit.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}
