//! Renders the guides in `docs/`, and the changelog, as HTML: one table `GUIDES` of Rust code for `page/docs.rs`.

use std::{error::Error, fmt::Write as _, fs, path::Path};

use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

/// The guides, in the order of the index: name of the page, file, and for whom.
const GUIDES: [(&str, &str, &str); 13] = [
    ("consumer", "docs/consumer.md", "Running jobs"),
    ("jobs", "docs/jobs.md", "Running jobs"),
    ("cli", "docs/cli.md", "Running jobs"),
    ("provider", "docs/provider.md", "Sharing a machine"),
    ("python", "docs/python.md", "Programs"),
    ("api", "docs/api.md", "Programs"),
    ("events", "docs/events.md", "Programs"),
    ("verification", "docs/verification.md", "Programs"),
    ("security", "docs/security.md", "Running a market"),
    ("operating", "docs/operating.md", "Running a market"),
    ("operator", "docs/operator.md", "Running a market"),
    ("scale", "docs/scale.md", "Running a market"),
    ("changelog", "CHANGELOG.md", "Running a market"),
];

/// A heading of a guide with the text below it, for the search.
struct Section {
    id: String,
    title: String,
    text: String,
}

/// Writes `guides.rs` into the directory `out`.
pub(crate) fn render(out: &Path) -> Result<(), Box<dyn Error>> {
    let mut code = String::from("[");
    for (name, file, group) in GUIDES {
        let path = Path::new("..").join(file);
        println!("cargo::rerun-if-changed={}", path.display());
        let markdown = fs::read_to_string(&path).map_err(|e| format!("reading {}: {e}", path.display()))?;
        let (body, sections) = guide(&markdown);
        let title = sections.first().map(|section| section.title.clone()).unwrap_or_default();
        write!(code, "Guide {{ name: {name:?}, group: {group:?}, title: {title:?}, html: {body:?}, sections: &[")?;
        for Section { id, title, text } in sections {
            write!(code, "Section {{ id: {id:?}, title: {title:?}, text: {text:?} }},")?;
        }
        code.push_str("] },\n");
    }
    code.push(']');
    fs::write(out.join("guides.rs"), code)?;
    Ok(())
}

/// The HTML of a guide, and its sections.
fn guide(markdown: &str) -> (String, Vec<Section>) {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    let events: Vec<Event<'_>> = Parser::new_ext(markdown, options).collect();
    let sections = sections(&events);
    let mut ids = sections.iter().map(|section| section.id.clone());
    let mut is_linked = Vec::new();
    let events = events.into_iter().filter_map(|event| match event {
        Event::Start(Tag::Heading { level, classes, attrs, .. }) => {
            let id = ids.next().map(CowStr::from);
            Some(Event::Start(Tag::Heading { level, id, classes, attrs }))
        }
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            let place = place(&dest_url);
            is_linked.push(place.is_some());
            place.map(|dest_url| Event::Start(Tag::Link { link_type, dest_url: dest_url.into(), title, id }))
        }
        Event::End(TagEnd::Link) => is_linked.pop().unwrap_or(true).then_some(Event::End(TagEnd::Link)),
        // A file's name means nothing to a reader of the product.
        Event::Text(text) if is_linked.last() == Some(&true) && text.ends_with(".md") => {
            Some(Event::Text(title_of(&text).map_or(text, CowStr::from)))
        }
        Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => None,
        // The guides have no HTML of their own.
        Event::Html(_) | Event::InlineHtml(_) => None,
        other => Some(other),
    });
    let mut body = String::new();
    html::push_html(&mut body, events);
    // Wide tables and long lines scroll by themselves, also with the keyboard.
    let body = body
        .replace("<table>", "<div class=\"scroll\" tabindex=\"0\"><table>")
        .replace("</table>", "</table></div>")
        .replace("<pre>", "<pre class=\"command\" tabindex=\"0\">");
    (body, sections)
}

/// The title of the guide with this file name.
fn title_of(file: &str) -> Option<String> {
    let (_, path, _) = GUIDES.iter().find(|(_, path, _)| path.rsplit('/').next() == Some(file))?;
    let markdown = fs::read_to_string(Path::new("..").join(path)).ok()?;
    Some(markdown.lines().next()?.trim_start_matches("# ").to_owned())
}

fn sections(events: &[Event<'_>]) -> Vec<Section> {
    let (mut sections, mut in_heading) = (Vec::<Section>::new(), false);
    for event in events {
        match event {
            Event::Start(Tag::Heading { level, .. }) => {
                in_heading = true;
                debug_assert!(*level == HeadingLevel::H1 || !sections.is_empty(), "a guide begins with its title");
                sections.push(Section { id: String::new(), title: String::new(), text: String::new() });
            }
            Event::End(TagEnd::Heading(_)) => in_heading = false,
            Event::Text(text) | Event::Code(text) => {
                let Some(section) = sections.last_mut() else { continue };
                if in_heading { section.title.push_str(text) } else { section.text.push_str(text) }
            }
            Event::SoftBreak | Event::HardBreak | Event::End(_) => {
                if let Some(section) = sections.last_mut().filter(|_| !in_heading) {
                    section.text.push(' ');
                }
            }
            _ => {}
        }
    }
    let mut used = Vec::new();
    for section in &mut sections {
        let slug = slug(&section.title);
        let before = used.iter().filter(|known| **known == slug).count();
        section.id = if before == 0 { slug.clone() } else { format!("{slug}-{before}") };
        used.push(slug);
        section.text = section.text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    sections
}

/// The id of a heading, as on GitHub: `A new job` is `a-new-job`. The second heading with this text gets `-1`.
fn slug(title: &str) -> String {
    let lower = title.to_lowercase();
    let kept = lower.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Where a link of a guide leads in the product. `None` for a file that is no guide.
fn place(address: &str) -> Option<String> {
    if address.starts_with("https://") || address.starts_with('#') {
        return Some(address.to_owned());
    }
    let (file, section) = address.split_once('#').map_or((address, None), |(file, section)| (file, Some(section)));
    let found = GUIDES.iter().find(|(_, path, _)| path.rsplit('/').next() == file.rsplit('/').next())?;
    Some(section.map_or_else(|| format!("/docs/{}", found.0), |section| format!("/docs/{}#{section}", found.0)))
}
