//! The hands-on steps of the original's lessons, typed as they stand there, with what they must show.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use regex::Regex;
use tests::Lab;

const STEPS: &str = include_str!("../lessons/original-steps.txt");

/// Types the steps into a lab; stops at the first that does not show what it must.
fn play(lab: &mut Lab, steps: &str) -> anyhow::Result<u32> {
    let mut captured: BTreeMap<String, String> = BTreeMap::new();
    let mut typed = String::new();
    let mut output = String::new();
    let mut checked = 0;
    for (number, step) in (1..).zip(steps.lines()) {
        let Some((kind, text)) = step.split_once(' ').filter(|(kind, _)| !kind.starts_with('#')) else { continue };
        let place = || format!("step at line {number}: {step}\nafter {typed:?} printed:\n{output}");
        let filled = |escape: bool| {
            captured.iter().fold(text.to_owned(), |text, (name, value)| {
                let value = if escape { regex::escape(value) } else { value.clone() };
                text.replace(&format!("{{{name}}}"), &value)
            })
        };
        match kind {
            ">" => {
                typed = filled(false);
                output = lab.type_line(&typed)?;
            }
            "*" => {
                let again = text.parse::<u32>().with_context(place)? - 1;
                for _ in 0..again {
                    output.push_str(&lab.type_line(&typed)?);
                }
            }
            "~" => {
                if !Regex::new(&filled(true))?.is_match(&output) {
                    bail!("not shown; {}\nthe lab said:\n{}", place(), lab.said());
                }
                checked += 1;
            }
            "!" => {
                if Regex::new(&filled(true))?.is_match(&output) {
                    bail!("shown, and must not be; {}", place());
                }
                checked += 1;
            }
            name if name.starts_with('@') => {
                let found =
                    Regex::new(text)?.captures(&output).and_then(|found| Some(found.get(1)?.as_str().to_owned()));
                captured.insert(name[1..].to_owned(), found.with_context(place)?);
                checked += 1;
            }
            _ => bail!("line {number} is no step: {step}"),
        }
    }
    Ok(checked)
}

#[test]
fn the_originals_hands_on_steps_show_what_they_must() -> anyhow::Result<()> {
    let mut lab = Lab::boot("lessons", &[])?;
    let checked = play(&mut lab, STEPS)?;
    assert!(checked > 80, "only {checked} checks were made");
    Ok(())
}
