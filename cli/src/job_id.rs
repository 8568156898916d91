//! Finds the job that a person means: by its id, or by the end of its id, as pages and lists show it.

use anyhow::bail;
use gpubnb_events::JobId;

use crate::api::Api;

/// The fewest characters of an id that name a job.
const SHORTEST: usize = 4;
/// The most pages of the list that are searched.
const MAX_PAGES: usize = 20;

/// The whole id of a job. A whole id is not looked up.
pub(crate) async fn find(api: &Api, job: &str) -> anyhow::Result<String> {
    let job = job.trim().to_lowercase();
    if job.parse::<JobId>().is_ok() {
        return Ok(job);
    }
    if !is_end_of_id(&job) {
        bail!("{job} is not the id of a job, or its last characters. `gpubnb jobs` lists your jobs");
    }
    let (mut found, mut cursor) = (Vec::new(), String::new());
    for _ in 0..MAX_PAGES {
        let page = api.get(&format!("/jobs?limit=200&text={job}{cursor}")).await?;
        let ids = page["rows"].as_array().into_iter().flatten().filter_map(|row| row["job"].as_str());
        found.extend(ids.filter(|id| id.ends_with(&job)).map(ToOwned::to_owned));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => bail!("you have no job whose id ends with {job}. `gpubnb jobs` lists your jobs"),
        several => bail!("{} of your jobs have an id that ends with {job}: {}", several.len(), several.join(", ")),
    }
}

fn is_end_of_id(text: &str) -> bool {
    text.len() >= SHORTEST && text.len() < 36 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_id_has_four_characters_or_more() {
        for good in ["f323426f", "0000", "7-f323"] {
            assert!(is_end_of_id(good), "{good}");
        }
        for bad in ["", "323", "my job", "f323426g", "../f323", "01a22bec-234e-7113-849b-cc7b55da3b8a"] {
            assert!(!is_end_of_id(bad), "{bad}");
        }
    }
}
