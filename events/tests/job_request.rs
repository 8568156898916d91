//! Running a job again submits the same job: the conversion from a request to an event and back loses nothing.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use gpubnb_events::{
    CommandId, HourlyRate, JobId, MachineId, MicroUsd, Seconds,
    command::{Secret, SubmitJob},
    event::JobSubmitted,
    job_request::{DatasetRequest, InputRequest, JobRequest},
    spec::{DatasetMount, Egress, Input, Limits, Mebibytes, Strategy},
    template,
};
use proptest::{
    collection::{btree_map, vec},
    option::of,
    prelude::{Strategy as Generator, any, prop, prop_assert_eq, prop_oneof, proptest},
};

/// Text with spaces, quotes, line feeds and characters outside ASCII.
fn text() -> impl Generator<Value = String> {
    "[ -~äß漢\n\"'\\\\]{1,20}"
}

fn amount() -> impl Generator<Value = String> {
    (0..10_000_000_i64).prop_map(|micros| MicroUsd(micros).to_string().replace('$', ""))
}

/// The program of a job: a template with values for its fields, or an image with a command.
fn program() -> impl Generator<Value = JobRequest> {
    let chosen = (0..template::OWN.len(), any::<u32>()).prop_map(|(n, seed)| {
        let template = &template::OWN[n];
        let choice = |f: &template::Field| {
            let template::Values::Number { least, most } = f.values else {
                panic!("the market's own jobs have numbers")
            };
            (f.name.clone(), (least + seed % (most - least + 1)).to_string())
        };
        // Some fields get a value, and the other fields keep the template's default.
        let parameters =
            template.fields.iter().filter(|f| !f.name.len().is_multiple_of(2) || seed % 2 == 0).map(choice).collect();
        JobRequest { template: Some(template.id.clone()), parameters, ..JobRequest::default() }
    });
    let custom = (text(), vec(text(), 0..5)).prop_map(|(image, command)| JobRequest {
        image: Some(image),
        command,
        ..JobRequest::default()
    });
    prop_oneof![chosen, custom]
}

/// The placement of a job: a named machine, or conditions for the market's choice.
fn placement() -> impl Generator<Value = JobRequest> {
    let named = of(amount()).prop_map(|price_cap_usd| JobRequest {
        machine: Some(MachineId::generate()),
        price_cap_usd,
        ..JobRequest::default()
    });
    let strategy = of(prop::sample::select(Strategy::ALL.map(|(strategy, ..)| strategy).to_vec()));
    let market = (strategy, of(amount()), of("[a-z0-9]{1,9}"), of("[a-z-]{1,9}"), of(0..=100_u32), any::<[bool; 2]>());
    let market = (market, of("[1-9][0-9]{0,2}\\.(0|[1-9][0-9]{0,2})"));
    let market = market.prop_map(
        |((strategy, price_cap_usd, gpu_model, region, min_reliability, [verified, simulated]), min_cuda)| JobRequest {
            min_cuda,
            strategy,
            price_cap_usd,
            gpu_model,
            region,
            min_reliability,
            verified,
            allow_simulated: simulated,
            ..JobRequest::default()
        },
    );
    prop_oneof![named, market]
}

fn egress() -> impl Generator<Value = Egress> {
    "([a-z]{1,9}\\.[a-z]{2,3} ){0,3}|any".prop_map(|text| text.parse().unwrap())
}

fn request() -> impl Generator<Value = JobRequest> {
    let sizes = (of(any::<u32>()), of(any::<u64>()), of(any::<u64>()), of(any::<u32>()), of(any::<u64>()));
    let added = (of(any::<u64>()), of("/[a-z/]{0,9}"), of(any::<u64>()), of(any::<u32>()), of(any::<u32>()));
    let limits = (of(any::<u64>()), of(amount()), of(any::<u32>()), of(any::<u64>()));
    let given = (btree_map("[A-Z]{1,5}", text().prop_map(Secret), 0..4), vec(text(), 0..4), egress());
    (program(), placement(), sizes, limits, given, of(text()), added).prop_map(
        |(
            program,
            place,
            (cpu_millis, memory_mib, output_mib, gpus, vram_mib),
            limits,
            (env, paths, egress),
            name,
            (shm_mib, workdir, disk_mib, pids, open_files),
        )| {
            let (time_seconds, budget_usd, max_attempts, queue_seconds) = limits;
            let JobRequest { template, parameters, image, command, .. } = program;
            let datasets = paths.iter().enumerate().map(|(n, path)| DatasetRequest {
                dataset: format!("{n:064}"),
                directory: Some(path.clone()),
                writable: n % 2 == 0,
            });
            let datasets = datasets.collect();
            let inputs = paths.into_iter().map(|path| InputRequest { input: CommandId::generate(), path }).collect();
            JobRequest {
                template,
                parameters,
                image,
                command,
                cpu_millis,
                memory_mib,
                output_mib,
                gpus,
                vram_mib,
                time_seconds,
                budget_usd,
                max_attempts,
                queue_seconds,
                env,
                egress,
                shm_mib,
                workdir,
                disk_mib,
                pids,
                open_files,
                inputs,
                datasets,
                name,
                ..place
            }
        },
    )
}

/// The event that the domain would write for a request.
fn submitted(request: JobRequest, job: JobId) -> JobSubmitted {
    let described =
        |i: &InputRequest| Input { input: i.input, path: i.path.clone(), bytes: 7, sha256: "ab".to_owned() };
    let inputs = request.inputs.iter().map(described).collect();
    let mounted = |d: &DatasetRequest| DatasetMount {
        dataset: d.dataset.parse().unwrap(),
        directory: d.directory.clone().unwrap(),
        writable: d.writable,
        files: 3,
        bytes: 7,
    };
    let datasets = request.datasets.iter().map(mounted).collect();
    let template = request.template.as_deref().and_then(template::find);
    let SubmitJob { spec, placement, time, budget, max_attempts, queue, .. } =
        request.into_command(job, template, inputs, datasets).unwrap();
    let hold = budget.unwrap_or(MicroUsd(1_234_567));
    let max_price = budget.is_none().then_some(HourlyRate(hold));
    let (max_attempts, queue) = (max_attempts.unwrap_or(3), queue.unwrap_or(Seconds(86_400)));
    let limits = Limits { time, budget: hold, max_attempts, queue, max_price };
    JobSubmitted {
        account: "01900000-0000-7000-8000-0000000000a1".parse().unwrap(),
        job,
        spec,
        placement,
        limits,
        hold,
    }
}

/// The request that submits the same job again.
fn again(event: &JobSubmitted) -> JobRequest {
    let template = event.spec.template.as_deref().and_then(template::find);
    JobRequest::from_job(&event.spec, &event.placement, &event.limits, template)
}

proptest! {
    #[test]
    fn running_a_job_again_submits_the_same_job(request in request()) {
        let job = JobId::generate();
        let event = submitted(request, job);
        let request = again(&event);
        // Through JSON, as the API and the client send it.
        let sent: JobRequest = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
        prop_assert_eq!(&sent, &request);
        let second = submitted(sent, job);
        prop_assert_eq!(&second, &event);
        // A request with every default filled in comes back unchanged.
        prop_assert_eq!(again(&second), request);
    }
}

#[test]
fn the_value_of_a_templates_field_must_be_within_the_bounds() {
    let command = |value: &str| {
        let parameters = [("epochs".to_owned(), value.to_owned())].into();
        let request = JobRequest { template: Some("train".to_owned()), parameters, ..JobRequest::default() };
        request.into_command(JobId::generate(), template::find("train"), Vec::new(), Vec::new())
    };
    assert_eq!(command("3").unwrap().spec.command[..3], ["train", "--epochs", "3"]);
    for bad in ["0", "--help", "1e3"] {
        assert_eq!(command(bad).unwrap_err().field.as_deref(), Some("epochs"), "{bad}");
    }
}

#[test]
fn numbers_and_check_boxes_parse_as_a_form_sends_them() {
    let read = |text: &str| serde_json::from_str::<JobRequest>(text);
    let request = read(r#"{ "memory_mib": "64", "gpus": 1, "verified": "on", "time_seconds": "" }"#).unwrap();
    let expected = JobRequest { memory_mib: Some(64), gpus: Some(1), verified: true, ..JobRequest::default() };
    assert_eq!(request, expected);
    for bad in [r#"{ "gpus": "two" }"#, r#"{ "gpus": -1 }"#, r#"{ "verified": "maybe" }"#, r#"{ "surprise": 1 }"#] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_job_of_a_template_that_has_changed_is_made_again_from_its_image() {
    let request = JobRequest { template: Some("train".to_owned()), ..JobRequest::default() };
    let event = submitted(request, JobId::generate());
    let train = template::find("train").unwrap();
    let changed = template::Template { image: "another@sha256:0".to_owned(), ..train.clone() };
    for template in [None, Some(&changed), template::find("noop")] {
        let again = JobRequest::from_job(&event.spec, &event.placement, &event.limits, template);
        assert_eq!((again.template, again.image), (None, Some(train.image.clone())));
        assert_eq!(again.command, event.spec.command);
    }
}

#[test]
fn a_template_adds_its_hosts_and_asks_for_its_file() {
    let input = Some("One video.".to_owned());
    let template =
        template::Template { egress: "pypi.org".parse().unwrap(), input, ..template::find("noop").unwrap().clone() };
    let file = Input { input: CommandId::generate(), path: "a".to_owned(), bytes: 1, sha256: "ab".to_owned() };
    let request = || JobRequest { template: Some("noop".to_owned()), ..JobRequest::default() };
    let command = |request: JobRequest, inputs: &[&Input]| {
        let inputs = inputs.iter().map(|input| (*input).clone()).collect();
        request.into_command(JobId::generate(), Some(&template), inputs, Vec::new()).unwrap()
    };
    let refused = template.check_input(&command(request(), &[]).spec).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("inputs"));
    template.check_input(&command(request(), &[&file]).spec).unwrap();
    assert_eq!(command(request(), &[]).spec.egress, template.egress);
    let own: Egress = "github.com".parse().unwrap();
    let both = command(JobRequest { egress: own.clone(), ..request() }, &[]).spec.egress;
    assert_eq!(both.patterns().len(), 2, "the hosts of the request are added");
    assert_eq!(command(JobRequest { egress: both.clone(), ..request() }, &[]).spec.egress, both);
    let unknown = JobRequest { template: Some("surprise".to_owned()), ..JobRequest::default() };
    let refused = unknown.into_command(JobId::generate(), None, Vec::new(), Vec::new()).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("template"));
}

#[test]
fn the_copy_of_a_dataset_takes_no_room_from_a_template() {
    let mut template = template::find("noop").unwrap().clone();
    let mount = DatasetMount {
        dataset: "0".repeat(64).parse().unwrap(),
        directory: "data".to_owned(),
        writable: true,
        files: 1,
        bytes: 10 << 30,
    };
    for disk in [None, Some(Mebibytes(512))] {
        template.resources.disk = disk;
        let least = template.resources.disk_size().0 + 10_240;
        let request = JobRequest { template: Some("noop".to_owned()), ..JobRequest::default() };
        let command = request.into_command(JobId::generate(), Some(&template), Vec::new(), vec![mount.clone()]);
        assert!(command.unwrap().spec.resources.disk.unwrap().0 >= least);
    }
}
