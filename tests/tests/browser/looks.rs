//! The look of pages, and the weight of the first view.
//!
//! A look is the brightness of the window in a coarse grid, so that letters, times and amounts may change, and a lost
//! stylesheet or a broken layout may not. The known looks are in `tests/looks/`; `GPUBNB_WRITE_LOOKS=1` writes them
//! anew after an intended change.

use std::{env, fmt::Write as _, fs, path::PathBuf};

use gpubnb_tests::{
    browser::Browser,
    programs::root,
    shared::{Plan, SharedMarket},
};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(Plan::default);

/// Pages that show the same to every visitor.
const PAGES: [(&str, &str); 8] = [
    ("/sign-up", "sign-up"),
    ("/sign-in", "sign-in"),
    ("/forgot", "forgot"),
    ("/market", "market"),
    ("/earn", "earn"),
    ("/docs", "docs"),
    ("/docs/consumer", "guide"),
    ("/docs/endpoints", "endpoints"),
];
/// The width of a window, its height, its colours, and the end of the names of its looks.
const WINDOWS: [(u32, u32, &str, &str); 4] = [
    (1280, 896, "light", ""),
    (1280, 896, "dark", "-dark"),
    (384, 736, "light", "-phone"),
    (384, 736, "dark", "-phone-dark"),
];
/// The width and the height of a cell of the grid, pixels.
const CELL: usize = 32;
/// Brightness 0 to 255 by which a cell may differ.
const TOLERANCE: u8 = 16;
/// A cell that differs from the background by more has something in it.
const BACKGROUND: u8 = 6;
/// The share, percent, that may differ of the cells that have something in them: the fonts of another computer move
/// some words.
const MOST_DIFFERENT: usize = 20;
/// The most bytes of the first view of a page, with everything that it loads.
const MOST_BYTES: u64 = 100_000;

/// The brightness of each cell of a picture, in rows.
fn look(png: &[u8]) -> Vec<Vec<u8>> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!(info.bit_depth, png::BitDepth::Eight);
    let (samples, width) = (info.color_type.samples(), info.width as usize);
    let rows = pixels.chunks_exact(info.line_size).collect::<Vec<_>>();
    let cell = |rows: &[&[u8]], column: usize| {
        let pixels = rows.iter().flat_map(|row| row[column * CELL * samples..][..CELL * samples].chunks_exact(samples));
        let sum: usize = pixels.map(|p| p[..3].iter().map(|channel| usize::from(*channel)).sum::<usize>()).sum();
        u8::try_from(sum / (3 * CELL * CELL)).unwrap()
    };
    rows.chunks_exact(CELL).map(|rows| (0..width / CELL).map(|column| cell(rows, column)).collect()).collect()
}

fn file(name: &str) -> PathBuf {
    root().join(format!("tests/looks/{name}.txt"))
}

/// A look as text: two hexadecimal digits for each cell.
fn to_text(look: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for row in look {
        for cell in row {
            write!(text, "{cell:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

/// The most frequent brightness of a look.
fn background(cells: &[u8]) -> u8 {
    let mut counts = [0_usize; 256];
    for cell in cells {
        counts[usize::from(*cell)] += 1;
    }
    let (value, _) = counts.iter().enumerate().max_by_key(|(_, count)| **count).unwrap();
    u8::try_from(value).unwrap()
}

/// The share of the cells, percent, that differ from the known look, of those that are not background in both.
fn share_of_different_cells(cells: &[u8], known: &[u8]) -> usize {
    assert_eq!(cells.len(), known.len(), "the window has another size");
    let empty = background(known);
    let has_something = |cell: &u8| cell.abs_diff(empty) > BACKGROUND;
    let pairs: Vec<_> =
        cells.iter().zip(known).filter(|(one, other)| has_something(one) || has_something(other)).collect();
    let different = pairs.iter().filter(|(one, other)| one.abs_diff(**other) > TOLERANCE).count();
    different * 100 / pairs.len().max(1)
}

fn known_look(name: &str) -> Vec<u8> {
    let text = fs::read_to_string(file(name)).unwrap();
    text.lines().flat_map(|row| data_encoding::HEXLOWER.decode(row.as_bytes()).unwrap()).collect()
}

#[tokio::test]
async fn the_pages_look_as_they_did() {
    let market = MARKET.open().await.unwrap();
    let browser = Browser::open(&market).await;
    let is_written = env::var_os("GPUBNB_WRITE_LOOKS").is_some();
    let mut broken = Vec::new();
    for (width, height, scheme, suffix) in WINDOWS {
        browser.set_viewport(width, height).await;
        browser.set_colour_scheme(scheme).await;
        for (path, name) in PAGES {
            browser.client.goto(&format!("{}{path}", market.url())).await.unwrap();
            browser.save_screenshot(&format!("look-{name}{suffix}")).await;
            let (look, name) = (look(&browser.client.screenshot().await.unwrap()), format!("{name}{suffix}"));
            if is_written {
                fs::create_dir_all(file(&name).parent().unwrap()).unwrap();
                fs::write(file(&name), to_text(&look)).unwrap();
                continue;
            }
            let different = share_of_different_cells(&look.concat(), &known_look(&name));
            if different > MOST_DIFFERENT {
                broken.push(format!("{path}{suffix}: {different} % of its cells differ"));
            }
        }
    }
    browser.close().await;
    assert!(
        broken.is_empty(),
        "{broken:?}\nPictures: target/pictures/look-*. GPUBNB_WRITE_LOOKS=1 accepts the new looks."
    );
}

#[test]
fn an_empty_page_and_the_colours_of_the_other_scheme_would_be_noticed() {
    for (_, name) in PAGES {
        for (.., suffix) in WINDOWS {
            let known = known_look(&format!("{name}{suffix}"));
            let empty = vec![background(&known); known.len()];
            assert!(share_of_different_cells(&empty, &known) > MOST_DIFFERENT, "{name}{suffix}");
            let inverted: Vec<u8> = known.iter().map(|cell| u8::MAX - cell).collect();
            assert!(share_of_different_cells(&inverted, &known) > MOST_DIFFERENT, "{name}{suffix}");
        }
    }
}

#[tokio::test]
async fn the_first_view_is_light_and_nothing_in_it_moves() {
    let market = MARKET.open().await.unwrap();
    let browser = Browser::open(&market).await;
    let slow = json!({ "offline": false, "latency": 40, "downloadThroughput": 1_250_000, "uploadThroughput": 625_000 });
    browser.devtools("Network.enable", json!({})).await;
    browser.devtools("Network.emulateNetworkConditions", slow).await;
    browser.devtools("Emulation.setCPUThrottlingRate", json!({ "rate": 4 })).await;
    for (width, height) in [(384, 736), (1280, 896)] {
        browser.set_viewport(width, height).await;
        for path in ["/", "/market", "/sign-up"] {
            browser.devtools("Network.clearBrowserCache", json!({})).await;
            browser.client.goto(&format!("{}{path}", market.url())).await.unwrap();
            let script = "const done = arguments[arguments.length - 1];
                const of = (type) => new Promise((found) => {
                  const entries = [];
                  const seen = new PerformanceObserver((list) => entries.push(...list.getEntries()));
                  seen.observe({ type, buffered: true });
                  setTimeout(() => found(entries), 500);
                });
                Promise.all([of('layout-shift'), of('largest-contentful-paint')]).then(([shifts, paints]) => done({
                  bytes: ['navigation', 'resource'].flatMap((type) => performance.getEntriesByType(type))
                    .reduce((sum, entry) => sum + entry.transferSize, 0),
                  shift: shifts.reduce((sum, entry) => sum + entry.value, 0),
                  moved: shifts.flatMap((entry) => entry.sources.map(({ node }) =>
                    (node?.outerHTML ?? node?.parentElement?.outerHTML ?? '').slice(0, 80))),
                  paint: paints.at(-1)?.startTime,
                }));";
            let found: Value = browser.client.execute_async(script, vec![]).await.unwrap();
            println!("{path} at {width}: {found}");
            assert!((1..MOST_BYTES).contains(&found["bytes"].as_u64().unwrap()), "{path}: {found}");
            assert!(found["shift"].as_f64().unwrap() < 0.01, "{path}: {found}");
        }
    }
    browser.close().await;
}
