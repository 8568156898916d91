//! The templates that this market offers: those of the market's own image, and those that an operator has approved.
//!
//! An approved template is a file `<id>.toml` in the directory `--templates`. `gpubnb-ui approve-template` writes the
//! file, with the digest for which the image's tag stands at that time. To retire a template, an operator removes the
//! file. The server notices both within seconds, and needs no restart (`docs/adr/0041-templates-are-files.md`).

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use gpubnb_dialer::Dialer;
use gpubnb_events::{
    spec::{Egress, ImageName, Mebibytes, Resources},
    template::{Field, OWN, OWN_IMAGE, Template, Values},
};
use gpubnb_registry::{Pinned, PrivateRegistry, Registries, pin};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::ApproveArgs;

/// The pause between two looks at the directory.
const PERIOD: Duration = Duration::from_secs(3);
/// Largest file, bytes, and most files.
const MAX_BYTES: u64 = 64 << 10;
const MAX_FILES: usize = 200;
/// Longest time for the answer of a registry.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(20);

/// A template as its file describes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    about: String,
    #[serde(default = "custom")]
    picture: String,
    image: String,
    /// The digest that the image's tag stood for when an operator approved the template.
    digest: Option<String>,
    command: Vec<String>,
    input: Option<String>,
    #[serde(default)]
    egress: Egress,
    min_cuda: Option<String>,
    seconds: u64,
    resources: FileResources,
    #[serde(default, rename = "field")]
    fields: Vec<FileField>,
}

fn custom() -> String {
    "custom".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileResources {
    cpu_millis: u32,
    memory_mib: u64,
    output_mib: u64,
    disk_mib: Option<u64>,
    shm_mib: Option<u64>,
    #[serde(default)]
    gpus: u32,
    #[serde(default)]
    vram_mib: u64,
}

/// A field: with `choices`, with `longest` for a text, or with `least` and `most` for a whole number.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileField {
    name: String,
    label: String,
    default: String,
    least: Option<u32>,
    most: Option<u32>,
    choices: Option<Vec<String>>,
    longest: Option<u32>,
}

impl TryFrom<FileField> for Field {
    type Error = anyhow::Error;

    fn try_from(FileField { name, label, default, least, most, choices, longest }: FileField) -> anyhow::Result<Self> {
        let values = match (least, most, choices, longest) {
            (Some(least), Some(most), None, None) => Values::Number { least, most },
            (None, None, Some(choices), None) => Values::Choice { choices },
            (None, None, None, Some(longest)) => Values::Text { longest },
            _ => anyhow::bail!("the field `{name}` has either `least` and `most`, or `choices`, or `longest`"),
        };
        Ok(Self { name, label, default, values })
    }
}

/// The name of a template in the gallery, from the path of its file.
fn id_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix(".toml")
}

/// The text of a file.
fn text_of(path: &Path) -> anyhow::Result<String> {
    let reading = || format!("reading {}", path.display());
    ensure!(fs::metadata(path).with_context(reading)?.is_file(), "{} is no file", path.display());
    let mut text = String::new();
    fs::File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text)).with_context(reading)?;
    ensure!(text.len() as u64 <= MAX_BYTES, "{} has more than {MAX_BYTES} bytes", path.display());
    Ok(text)
}

/// The template in a file. Its image has a digest.
fn template(path: &Path, text: &str) -> anyhow::Result<Template> {
    let file: File = toml::from_str(text).with_context(|| format!("{} is no template", path.display()))?;
    let id = id_of(path).with_context(|| format!("{} is not named <id>.toml", path.display()))?;
    let digest = file.digest.context("it has no digest: `gpubnb-ui approve-template` finds it")?;
    let min_cuda = file.min_cuda.as_deref().map(str::parse).transpose();
    let min_cuda = min_cuda.map_err(|_| anyhow::anyhow!("`min_cuda` is a version such as 12.4"))?;
    let image = format!("{}@{digest}", file.image);
    ensure!(ImageName::parse(&image).is_some_and(|name| name.digest.is_some()), "{image} is no image with a digest");
    ensure!(gpubnb_events::template::find(id).is_none(), "the market has a template `{id}` of its own");
    let FileResources { cpu_millis, memory_mib, output_mib, disk_mib, shm_mib, gpus, vram_mib } = file.resources;
    let mut resources = Resources::new(cpu_millis, Mebibytes(memory_mib), Mebibytes(output_mib));
    (resources.disk, resources.shm) = (disk_mib.map(Mebibytes), shm_mib.map(Mebibytes));
    let template = Template {
        id: id.to_owned(),
        title: file.title,
        about: file.about,
        picture: file.picture,
        image_name: file.image,
        image,
        command: file.command,
        fields: file.fields.into_iter().map(Field::try_from).collect::<Result<_, _>>()?,
        input: file.input,
        egress: file.egress,
        min_cuda,
        resources: resources.with_gpus(gpus, Mebibytes(vram_mib)),
        seconds: file.seconds,
    };
    match template.fault() {
        Some(fault) => anyhow::bail!("{}: {fault}", path.display()),
        None => Ok(template),
    }
}

/// The templates, as they are now.
#[derive(Debug)]
pub(crate) struct Templates {
    directory: Option<PathBuf>,
    known: RwLock<Arc<[Arc<Template>]>>,
    /// The faults of the last look, so that the log has each only once.
    faults: Mutex<BTreeSet<String>>,
}

impl Templates {
    /// Reads the directory with the approved templates.
    pub(crate) fn open(directory: Option<PathBuf>) -> Self {
        let templates = Self { directory, known: RwLock::new(Arc::new([])), faults: Mutex::default() };
        templates.read_again();
        templates
    }

    /// All templates: those of the market's own image, and then the others in the order of their titles.
    pub(crate) fn all(&self) -> Arc<[Arc<Template>]> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The template with this id.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Template>> {
        self.all().iter().find(|template| template.id == id).cloned()
    }

    /// Looks at the directory again and again.
    pub(crate) async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        while self.directory.is_some() && shutdown.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            let templates = Arc::clone(&self);
            // A panic of the reader is in the log of the process already.
            drop(tokio::task::spawn_blocking(move || templates.read_again()).await);
        }
    }

    fn read_again(&self) {
        let mut found: Vec<Arc<Template>> = OWN.iter().cloned().map(Arc::new).collect();
        let mut faults = BTreeSet::new();
        if let Some(directory) = &self.directory {
            match approved(directory, &mut faults) {
                Ok(approved) => found.extend(approved.into_iter().map(Arc::new)),
                Err(e) => {
                    faults.insert(format!("{} cannot be read: {e}", directory.display()));
                    // The templates that were offered stay: the directory may be away for a moment.
                    found.extend(self.all().iter().filter(|template| template.image != OWN_IMAGE).cloned());
                }
            }
        }
        let mut known_faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        for fault in faults.difference(&known_faults) {
            warn!(fault, "a template is not offered");
        }
        *known_faults = faults;
        drop(known_faults);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() != found.len() || known.iter().zip(&found).any(|(old, new)| old != new) {
            info!(templates = found.len(), "the market offers these templates");
            *known = found.into();
        }
    }
}

/// The approved templates. A file that is no template is left out.
fn approved(directory: &Path, faults: &mut BTreeSet<String>) -> io::Result<Vec<Template>> {
    let paths = fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> = paths.collect::<Result<_, _>>()?;
    paths.retain(|path| id_of(path).is_some());
    paths.sort();
    if paths.len() > MAX_FILES {
        faults.insert(format!("{} has more than {MAX_FILES} templates", directory.display()));
        paths.truncate(MAX_FILES);
    }
    let mut found = Vec::new();
    for path in paths {
        match text_of(&path).and_then(|text| template(&path, &text)) {
            Ok(template) => found.push(template),
            Err(e) => drop(faults.insert(format!("{}: {e:#}", path.display()))),
        }
    }
    found.sort_by(|a, b| a.title.cmp(&b.title));
    Ok(found)
}

/// `gpubnb-ui approve-template`. One template that cannot be approved does not keep the others from it.
pub async fn approve_templates(args: ApproveArgs) -> anyhow::Result<()> {
    let mut failed = 0;
    for path in &args.files {
        match approve(path, &args.templates, args.private_registry.clone()).await {
            Ok(template) => println!("{}: {}", template.id, template.image),
            Err(e) => {
                eprintln!("{}: not approved: {e:#}", path.display());
                failed += 1;
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} templates were not approved", args.files.len());
    Ok(())
}

/// Approves a template: finds the digest of its image, and writes the file with the digest into the directory of the
/// approved templates. Returns the approved template.
async fn approve(path: &Path, directory: &Path, private: Vec<PrivateRegistry>) -> anyhow::Result<Template> {
    // Another part of the process may have installed it.
    drop(rustls::crypto::ring::default_provider().install_default());
    let text = text_of(path)?;
    let file: File = toml::from_str(&text).with_context(|| format!("{} is no template", path.display()))?;
    ensure!(file.digest.is_none(), "{} is approved already: approve its file without a digest again", path.display());
    let name = ImageName::parse(&file.image).with_context(|| format!("{} is no name of an image", file.image))?;
    let tag = name.tag.with_context(|| format!("name the tag of the image, such as {}:latest", file.image))?;
    let registries = Registries { dialer: Dialer::default(), private };
    let asked = async { pin(&mut registries.open(&name)?, tag).await };
    let found = timeout(REGISTRY_TIMEOUT, asked).await.context("the registry does not answer")?;
    let Pinned { digest, architectures } =
        found.with_context(|| format!("the registry has no answer about {}", file.image))?;
    let has_amd64 = architectures.is_empty() || architectures.iter().any(|architecture| architecture == "amd64");
    ensure!(has_amd64, "{} has no variant for amd64, only for {}", file.image, architectures.join(", "));
    let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    let is_image = |line: &String| line.split('=').next().is_some_and(|key| key.trim() == "image");
    let place = lines.iter().position(is_image).context("the line `image = …` must stand alone")?;
    lines.insert(place + 1, format!("digest = \"sha256:{digest}\""));
    let approved = lines.join("\n") + "\n";
    let template = template(path, &approved)?;
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let target = directory.join(format!("{}.toml", template.id));
    let partial = target.with_extension("partial");
    let written = fs::write(&partial, approved).and_then(|()| fs::rename(&partial, &target));
    written.with_context(|| format!("writing {}", target.display()))?;
    Ok(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
title = "Convert"
about = "Converts a file."
image = "example.org/tool:1"
command = ["convert", "--quality", "{quality}", "{format}"]
input = "One file."
egress = ["example.org"]
seconds = 60

[resources]
cpu_millis = 1000
memory_mib = 64
output_mib = 16

[[field]]
name = "quality"
label = "Quality"
default = "5"
least = 1
most = 9

[[field]]
name = "format"
label = "Format"
default = "png"
choices = ["png", "jpg"]
"#;

    fn with_digest() -> String {
        FILE.replace("command =", &format!("digest = \"sha256:{}\"\ncommand =", "0".repeat(64)))
    }

    #[test]
    fn files_come_and_go_while_the_server_runs() {
        let directory = tempfile::tempdir().unwrap();
        let templates = Templates::open(Some(directory.path().to_owned()));
        assert_eq!(templates.all().len(), OWN.len());
        fs::write(directory.path().join("convert.toml"), with_digest()).unwrap();
        fs::write(directory.path().join("pending.toml"), FILE).unwrap();
        fs::write(directory.path().join("train.toml"), with_digest()).unwrap();
        fs::write(directory.path().join("notes.txt"), "x").unwrap();
        templates.read_again();
        assert_eq!(templates.all().len(), OWN.len() + 1, "a file without a digest is not offered");
        let found = templates.find("convert").unwrap();
        assert!(found.image.starts_with("example.org/tool:1@sha256:0000"));
        assert_eq!(found.spec("x").command, ["convert", "--quality", "5", "png"]);
        assert_eq!(templates.find("train").unwrap().image, OWN_IMAGE);
        fs::remove_file(directory.path().join("convert.toml")).unwrap();
        templates.read_again();
        assert_eq!(templates.find("convert"), None);
        // Windows ends lines with CR and LF.
        fs::write(directory.path().join("convert.toml"), with_digest().replace('\n', "\r\n")).unwrap();
        fs::write(directory.path().join("large.toml"), " ".repeat(70_000)).unwrap();
        fs::create_dir(directory.path().join("folder.toml")).unwrap();
        templates.read_again();
        let faults = templates.faults.lock().unwrap().clone();
        assert!(templates.find("convert").is_some() && faults.len() == 4, "{faults:?}");
        // A directory that is away for a moment takes nothing away.
        let path = directory.path().to_owned();
        drop(directory);
        templates.read_again();
        assert!(!path.exists() && templates.find("convert").is_some());
    }

    #[test]
    fn a_file_that_is_no_template_says_why() {
        let fault = |text: String| format!("{:#}", template(Path::new("a.toml"), &text).unwrap_err());
        assert!(fault(FILE.to_owned()).contains("approve-template"));
        assert!(fault(with_digest().replace("most = 9", "most = 9\nlongest = 3")).contains("`quality`"));
        assert!(fault(with_digest().replace("\"{format}\"", "\"run {format}\"")).contains("`{format}`"));
        assert!(fault(with_digest().replace("seconds", "minutes")).contains("minutes"));
        assert!(fault(with_digest().replace("sha256:0", "sha256:x")).contains("digest"));
    }

    /// The gallery of this repository.
    #[test]
    fn every_template_of_the_gallery_is_ready_to_be_approved() {
        let mut count = 0;
        let icons = include_str!("../assets/icons.svg");
        for entry in fs::read_dir("../templates").unwrap() {
            let path = entry.unwrap().path();
            let text = text_of(&path).unwrap();
            let digest = format!("digest = \"sha256:{}\"\n", "0".repeat(64));
            let template = template(&path, &format!("{digest}{text}")).unwrap();
            assert!(icons.contains(&format!("<symbol id=\"picture-{}\"", template.picture)), "{}", template.id);
            assert!(!text.contains("digest"), "an operator's approval finds the digest");
            count += 1;
        }
        assert_eq!(count, 13);
    }
}
