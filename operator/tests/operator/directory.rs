//! Changes of files and folders.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::symlink,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use slotmesh_builders::{pod, service, slice, to, virtual_service};
use slotmesh_compile::Object;
use slotmesh_operator::{Error, Operator, OperatorOptions};
use slotmesh_xds::{Change, ResourceType};

use crate::support::{Site, replace, yaml};

pub fn web(ip: &str) -> Object {
    service("web").ip(ip).port(80).build()
}

#[test]
fn files_come_change_and_go() {
    let site = Site::with(&[("web.yaml", yaml(&[web("10.0.0.1")]))]);
    assert!(site.has_listener("10.0.0.1_80"));
    let slice = slice("s", "web").port(80).endpoint("10.1.0.1");
    site.write("slice.json", serde_json::to_string(&slice.0).unwrap());
    site.until("a new file", |s| s.has_endpoint("10.1.0.1"));
    site.write("web.yaml", yaml(&[web("10.0.0.2")]));
    site.until("a change", |s| s.has_listener("10.0.0.2_80") && !s.has_listener("10.0.0.1_80"));
    fs::write(site.path("web.yaml"), yaml(&[web("10.0.0.3")])).unwrap();
    site.until("a file written over", |s| s.has_listener("10.0.0.3_80"));
    fs::remove_file(site.path("web.yaml")).unwrap();
    site.until("a file that goes", |s| s.names(ResourceType::Listener).is_empty());
}

#[test]
fn a_save_in_steps_is_one_change() {
    let text = |ip: &str| yaml(&[web("10.0.0.1"), service("api").ip(ip).port(80).build()]);
    let site = Site::with(&[("web.yaml", text("10.0.0.2"))]);
    // A machine that is too busy to write in time gets another chance.
    for attempt in 3..30 {
        let ip = format!("10.0.0.{attempt}");
        let text = text(&ip);
        let before = site.status().compiled;
        let start = Instant::now();
        let mut file = File::create(site.path("web.yaml")).unwrap();
        for part in text.as_bytes().chunks(text.len() / 3 + 1) {
            thread::sleep(Duration::from_millis(30));
            file.write_all(part).unwrap();
        }
        drop(file);
        let took = start.elapsed();
        site.until("the save", |s| s.has_listener(&format!("{ip}_80")) && s.has_listener("10.0.0.1_80"));
        if took < Duration::from_millis(150) {
            // Listener, cluster and endpoints of the one Service that changed, and nothing in between.
            site.until("the count", |s| s.status().compiled != before);
            assert_eq!(site.status().compiled.units - before.units, 3);
            return;
        }
    }
    panic!("this machine never wrote a small file within 150 ms");
}

#[test]
fn a_file_stays_in_force_while_it_is_truncated_and_until_it_is_closed() {
    let site = Site::with(&[("web.yaml", yaml(&[web("10.0.0.1")]))]);
    let before = site.all();
    let mut file = File::create(site.path("web.yaml")).unwrap();
    Site::settle();
    assert_eq!(site.all(), before);
    // Other files are read meanwhile, and folders are looked through.
    fs::create_dir(site.path("sub")).unwrap();
    site.write("sub/api.yaml", yaml(&[service("api").ip("10.0.0.9").port(80).build()]));
    site.until("another file", |s| s.has_listener("10.0.0.9_80"));
    Site::settle();
    assert!(site.has_listener("10.0.0.1_80"));
    file.write_all(yaml(&[web("10.0.0.2")]).as_bytes()).unwrap();
    Site::settle();
    assert!(site.has_listener("10.0.0.1_80"));
    drop(file);
    site.until("the file", |s| s.has_listener("10.0.0.2_80") && !s.has_listener("10.0.0.1_80"));
    assert!(site.reports().is_empty(), "{:?}", site.reports());
}

#[test]
fn a_directory_that_is_made_anew_at_once_is_followed() {
    let site = Site::with(&[("web.yaml", yaml(&[web("10.0.0.1")]))]);
    for i in 2..6 {
        fs::remove_dir_all(&site.dir).unwrap();
        fs::create_dir(&site.dir).unwrap();
        Site::settle();
        let listener = format!("10.0.0.{i}_80");
        site.write("web.yaml", yaml(&[web(&format!("10.0.0.{i}"))]));
        site.until("a file in the new directory", |s| s.has_listener(&listener));
    }
}

#[test]
fn links_to_folders_are_left_alone() {
    let site = Site::with(&[]);
    let other = tempfile::tempdir().unwrap();
    symlink(other.path(), site.path("linked")).unwrap();
    Site::settle();
    replace(&other.path().join("web.yaml"), &yaml(&[web("10.0.0.1")]));
    Site::settle();
    assert!(!site.has_listener("10.0.0.1_80"));
}

#[test]
fn a_directory_that_is_a_link_is_followed_and_so_is_the_link() {
    let temp = tempfile::tempdir().unwrap();
    for (folder, ip) in [("one", "10.0.0.1"), ("two", "10.0.0.2")] {
        fs::create_dir(temp.path().join(folder)).unwrap();
        replace(&temp.path().join(folder).join("web.yaml"), &yaml(&[web(ip)]));
    }
    let link = temp.path().join("link");
    symlink("one", &link).unwrap();
    let site = Site::on(temp, link.clone());
    assert!(site.has_listener("10.0.0.1_80"));
    site.write("web.yaml", yaml(&[web("10.0.0.3")]));
    site.until("a change", |s| s.has_listener("10.0.0.3_80"));
    symlink("two", link.with_extension("new")).unwrap();
    fs::rename(link.with_extension("new"), &link).unwrap();
    site.until("the other directory", |s| s.has_listener("10.0.0.2_80"));
    site.write("web.yaml", yaml(&[web("10.0.0.4")]));
    site.until("a change there", |s| s.has_listener("10.0.0.4_80"));
}

#[test]
fn a_pipe_and_a_folder_named_like_a_manifest_block_nothing() {
    let site = Site::with(&[]);
    let made = std::process::Command::new("mkfifo").arg(site.path("pipe.yaml")).status().unwrap();
    assert!(made.success());
    fs::create_dir(site.path("folder.yaml")).unwrap();
    site.write("folder.yaml/web.yaml", yaml(&[web("10.0.0.1")]));
    site.until("a file in the folder", |s| s.has_listener("10.0.0.1_80"));
    fs::rename(site.path("folder.yaml"), site.path(".hidden")).unwrap();
    site.until("the folder to go", |s| s.names(ResourceType::Listener).is_empty());
    assert!(site.reports().is_empty(), "{:?}", site.reports());
}

#[test]
fn folders_come_move_and_go() {
    let site = Site::with(&[]);
    fs::create_dir_all(site.path("a/b")).unwrap();
    site.write("a/b/web.yaml", yaml(&[web("10.0.0.1")]));
    site.until("a file in a new folder", |s| s.has_listener("10.0.0.1_80"));
    site.write("a/b/web.yaml", yaml(&[web("10.0.0.2")]));
    site.until("a change in it", |s| s.has_listener("10.0.0.2_80"));
    fs::rename(site.path("a"), site.path(".hidden")).unwrap();
    site.until("a folder that goes", |s| s.names(ResourceType::Listener).is_empty());
    fs::rename(site.path(".hidden"), site.path("c")).unwrap();
    site.until("a folder that comes", |s| s.has_listener("10.0.0.2_80"));
}

#[test]
fn a_mounted_config_map_changes_by_a_link() {
    let site = Site::with(&[]);
    for (folder, ip) in [("..1", "10.0.0.1"), ("..2", "10.0.0.2")] {
        fs::create_dir(site.path(folder)).unwrap();
        site.write(&format!("{folder}/web.yaml"), yaml(&[web(ip)]));
    }
    symlink("..1", site.path("..data")).unwrap();
    symlink("..data/web.yaml", site.path("web.yaml")).unwrap();
    site.until("the link", |s| s.has_listener("10.0.0.1_80"));
    symlink("..2", site.path("..tmp")).unwrap();
    fs::rename(site.path("..tmp"), site.path("..data")).unwrap();
    site.until("the other link", |s| s.has_listener("10.0.0.2_80"));
}

#[test]
fn a_directory_that_disappears_leaves_all_in_force() {
    let site = Site::with(&[("web.yaml", yaml(&[web("10.0.0.1")]))]);
    let before = site.all();

    // Moved away and back.
    let away = site.dir.with_extension("away");
    fs::rename(&site.dir, &away).unwrap();
    site.until_said("the directory has disappeared; all that it defined stays in force");
    Site::settle();
    assert_eq!(site.all(), before);
    fs::rename(&away, &site.dir).unwrap();
    site.until("the report to go", |s| s.reports().is_empty());
    site.write("web.yaml", yaml(&[web("10.0.0.2")]));
    site.until("changes after it is back", |s| s.has_listener("10.0.0.2_80"));

    // Removed with its files, and made anew.
    let before = site.all();
    fs::remove_dir_all(&site.dir).unwrap();
    site.until_said("the directory has disappeared");
    Site::settle();
    assert_eq!(site.all(), before);
    fs::create_dir(&site.dir).unwrap();
    site.write("web.yaml", yaml(&[web("10.0.0.3")]));
    site.until("the new directory", |s| s.has_listener("10.0.0.3_80") && s.reports().is_empty());
    site.write("web.yaml", yaml(&[web("10.0.0.4")]));
    site.until("changes in the new directory", |s| s.has_listener("10.0.0.4_80"));
}

#[test]
fn a_directory_with_its_parent_comes_back() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("x/manifests");
    fs::create_dir_all(&dir).unwrap();
    let (sender, changes) = std::sync::mpsc::channel::<Vec<Change>>();
    let options = OperatorOptions::default();
    let operator = Operator::from_manifests(&dir, options, move |c| drop(sender.send(c))).unwrap();
    let next = || changes.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(next().is_empty(), "an empty directory is an answer too");
    fs::remove_dir_all(temp.path().join("x")).unwrap();
    thread::sleep(Duration::from_millis(100));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("web.yaml"), yaml(&[web("10.0.0.1")])).unwrap();
    assert!(!next().is_empty());
    drop(operator);
}

#[test]
fn no_directory_is_an_error_that_says_so() {
    let options = OperatorOptions::default();
    let error = Operator::from_manifests(Path::new("/nowhere/at/all"), options, |_| {}).unwrap_err();
    assert!(matches!(error, Error::NotADirectory { .. }));
    assert!(error.to_string().starts_with("/nowhere/at/all is not a directory"), "{error}");
}

#[test]
fn pods_are_endpoints_without_slices_in_the_manifests() {
    let web = service("web").ip("10.0.0.1").port(80).selector("app", "web").build();
    let web_pod = |name, ip| pod(name).label("app", "web").ip(ip).build();
    let site = Site::with(&[("web.yaml", yaml(&[web, web_pod("a", "10.1.0.1"), web_pod("b", "10.1.0.2")]))]);
    assert!(site.has_endpoint("10.1.0.1") && site.has_endpoint("10.1.0.2"));
    assert!(site.reports().is_empty(), "{:?}", site.reports());
    site.write("c.yaml", yaml(&[web_pod("c", "10.1.0.3")]));
    site.until("one more pod", |s| s.has_endpoint("10.1.0.3"));
    fs::remove_file(site.path("c.yaml")).unwrap();
    site.until("one pod less", |s| !s.has_endpoint("10.1.0.3"));
}

#[test]
fn one_save_that_touches_several_files_is_compiled_at_once() {
    let api = service("api").ip("10.0.0.8").port(80).build();
    let route = yaml(&[virtual_service("web", "web").http([to("blue", 1)]).build(), api]);
    let blue = yaml(&[service("blue").ip("10.0.0.9").port(80).build()]);
    // How often was published, and how long the save took.
    let save = |pause: Duration| {
        let site = Site::with(&[("web.yaml", yaml(&[web("10.0.0.1")]))]);
        let before = site.batches();
        let start = Instant::now();
        site.write("a-route.yaml", &route);
        thread::sleep(pause);
        site.write("blue.yaml", &blue);
        let took = start.elapsed();
        site.until("the other Service", |s| s.has_listener("10.0.0.9_80"));
        site.until("the route", |s| s.names(ResourceType::Route).len() == 1 && s.reports().is_empty());
        (site.batches() - before, took)
    };
    assert!(save(Duration::from_millis(300)).0 > 1, "two saves are published one by one");
    // A machine that is too busy to save in time gets another chance.
    for _ in 0..30 {
        let (batches, took) = save(Duration::ZERO);
        if took < Duration::from_millis(10) {
            assert_eq!(batches, 1);
            return;
        }
    }
    panic!("this machine never wrote two small files within 10 ms");
}
