//! Images in all their forms, made here, and what is wrong with some.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use serde_json::{Value, json};
use tar::EntryType::{Directory, Link, Regular};

use super::*;
use crate::unpack::Limits;
use crate::unpack::tests::tar;

/// An image layout in a directory, made of layers as bytes and what they are decompressed.
struct Layout {
    dir: tempfile::TempDir,
}

impl Layout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("image/blobs/sha256")).unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn store(&self) -> Store {
        Store::at(self.dir.path().join("store"))
    }

    fn blob(&self, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"digest": digest.to_string(), "size": bytes.len(), "mediaType": "application/vnd.oci.image.layer.v1.tar"})
    }

    fn text(&self, kind: &str, value: &Value) -> Value {
        let mut descriptor = self.blob(value.to_string().as_bytes());
        descriptor["mediaType"] = json!(format!("application/vnd.oci.image.{kind}+json"));
        descriptor
    }

    /// A manifest of packed layers.
    fn manifest(&self, config: Value, layers: &[(Vec<u8>, Vec<u8>)]) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|(_, plain)| Digest::of(plain).to_string()).collect();
        let config = json!({"os": "linux", "architecture": "amd64", "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.text("config.v1", &config);
        let layers: Vec<_> = layers.iter().map(|(packed, _)| self.blob(packed)).collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.text("manifest.v1", &manifest)
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.path().join("index.json"), index.to_string()).unwrap();
        fs::write(self.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }

    fn open(&self, tag: &str) -> Result<Image, String> {
        let reference = format!("{}{tag}", self.path().display());
        Image::open(&reference, &self.store()).map_err(|error| error.to_string())
    }

    /// The layout as an archive.
    fn archive(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir_all(".", self.path()).unwrap();
        builder.into_inner().unwrap()
    }
}

fn plain(layer: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    (layer.clone(), layer)
}

fn gzip(layer: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&layer).unwrap();
    (encoder.finish().unwrap(), layer)
}

fn zstd(layer: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    (ruzstd::encoding::compress_to_vec(&*layer, level), layer)
}

fn base() -> Vec<u8> {
    let tree = [
        ("etc/", Directory, ""),
        ("etc/old", Regular, "old"),
        ("etc/kept", Regular, "kept"),
        ("opt/", Directory, ""),
        ("opt/below", Regular, "x"),
        ("bin/tool", Regular, "tool"),
        ("bin/same", Link, "bin/tool"),
    ];
    tar(&tree)
}

fn middle() -> Vec<u8> {
    tar(&[("etc/.wh.old", Regular, ""), ("opt/.wh..wh..opq", Regular, ""), ("opt/above", Regular, "y")])
}

fn top() -> Vec<u8> {
    tar(&[("etc/kept", Regular, "changed")])
}

/// What the layers show, as a list of `path=contents`.
fn shown(image: &Image) -> String {
    let target = tempfile::tempdir().unwrap();
    merge(&image.layers, target.path(), None).unwrap();
    let (tool, same) = (target.path().join("bin/tool"), target.path().join("bin/same"));
    assert_eq!(fs::metadata(tool).unwrap().ino(), fs::metadata(same).unwrap().ino());
    let mut files = Vec::new();
    list(target.path(), target.path(), &mut files);
    files.sort();
    files.join(" ")
}

fn list(root: &Path, at: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(root, &path, files);
        } else {
            let text = fs::read_to_string(&path).unwrap();
            files.push(format!("{}={text}", path.strip_prefix(root).unwrap().display()));
        }
    }
}

const SHOWN: &str = "bin/same=tool bin/tool=tool etc/kept=changed opt/above=y";

fn three_layers() -> Layout {
    let layout = Layout::new();
    let config = json!({"Entrypoint": ["/init"], "Env": ["A=1"]});
    let manifest = layout.manifest(config, &[gzip(base()), plain(middle()), zstd(top())]);
    layout.index(&[manifest]);
    layout
}

#[test]
fn a_layout_is_read_as_directory_and_as_archive() {
    let layout = three_layers();
    let image = layout.open("").unwrap();
    assert_eq!(shown(&image), SHOWN);
    assert_eq!(image.config.entrypoint, ["/init"]);
    for (name, bytes) in [
        ("a.tar", layout.archive()),
        ("a.tar.gz", gzip(layout.archive()).0),
        ("a.tar.zst", zstd(layout.archive()).0),
    ] {
        let path = layout.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let again = Image::open(path.to_str().unwrap(), &layout.store()).unwrap();
        // The same layers, not unpacked again.
        assert_eq!((&again.layers, &again.id), (&image.layers, &image.id), "{name}");
    }
    assert_eq!(fs::read_dir(layout.dir.path().join("store/layers")).unwrap().count(), 3);
}

#[test]
fn images_share_the_layers_that_they_have_in_common() {
    let layout = Layout::new();
    let mut one = layout.manifest(json!({}), &[gzip(base()), plain(middle())]);
    let mut two = layout.manifest(json!({}), &[zstd(base()), plain(top())]);
    one["annotations"] = json!({"org.opencontainers.image.ref.name": "registry/one:1.0"});
    two["annotations"] = json!({"org.opencontainers.image.ref.name": "two"});
    let mut other = two.clone();
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let inner = json!({"schemaVersion": 2, "manifests": [other, two]});
    let mut index = layout.text("index.v1", &inner);
    index["annotations"] = json!({"org.opencontainers.image.ref.name": "two"});
    layout.index(&[one, index]);
    let (one, two) = (layout.open(":1.0").unwrap(), layout.open(":two").unwrap());
    assert_eq!(one.layers[0], two.layers[0]);
    assert_ne!(one.layers[1], two.layers[1]);
    assert!(layout.open("").unwrap_err().ends_with("it has 2 images: name one behind a colon"));
    assert!(layout.open(":3").unwrap_err().ends_with(r#"it has no image "3" for linux/amd64"#));
}

#[test]
fn docker_s_archive_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let layers = [base(), middle(), top()];
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "config": {"Cmd": ["sh"]}, "rootfs": {"diff_ids": diff_ids}}).to_string();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let names = ["a/layer.tar", "b/layer.tar", "c/layer.tar"];
    let list = json!([{"Config": name, "RepoTags": ["box:latest"], "Layers": names}]).to_string();
    let text = |layer: &Vec<u8>| String::from_utf8(layer.clone()).unwrap();
    let (one, two, three) = (text(&layers[0]), text(&layers[1]), text(&layers[2]));
    let entries = [
        ("manifest.json", Regular, &*list),
        (&*name, Regular, &*config),
        ("a/layer.tar", tar::EntryType::Symlink, "../blobs/../x"),
        ("x", Regular, &*one),
        ("b/layer.tar", Regular, &*two),
        ("c/layer.tar", Regular, &*three),
    ];
    let path = dir.path().join("saved.tar");
    fs::write(&path, tar(&entries)).unwrap();
    let store = Store::at(dir.path().join("store"));
    for reference in [path.display().to_string(), format!("{}:latest", path.display())] {
        let image = Image::open(&reference, &store).unwrap();
        assert_eq!((shown(&image), &*image.config.cmd), (SHOWN.to_owned(), &["sh".to_owned()][..]));
    }
    let bad = config.replace("sh", "rm");
    let entries = [("manifest.json", Regular, &*list), (&*name, Regular, &*bad)];
    fs::write(&path, tar(&entries)).unwrap();
    let error = Image::open(path.to_str().unwrap(), &store).unwrap_err().to_string();
    assert!(error.contains(".json is sha256:"), "{error}");
    // What it names is looked for in the archive, and only there.
    fs::write(dir.path().join("secret"), "x").unwrap();
    let list = json!([{"Config": "../secret", "Layers": []}]).to_string();
    fs::write(&path, tar(&[("manifest.json", Regular, &*list)])).unwrap();
    let error = Image::open(path.to_str().unwrap(), &store).unwrap_err().to_string();
    assert!(error.ends_with("it has no ../secret"), "{error}");
}

#[test]
fn root_filesystems_are_images_without_words() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path().join("store"));
    let path = dir.path().join("root.tar.gz");
    fs::write(&path, gzip(base()).0).unwrap();
    let image = Image::open(path.to_str().unwrap(), &store).unwrap();
    assert_eq!(shown(&image), "bin/same=tool bin/tool=tool etc/kept=kept etc/old=old opt/below=x");
    let directory = Image::open(image.layers[0].to_str().unwrap(), &store).unwrap();
    assert_eq!((&directory.layers, directory.id), (&image.layers, None));
    let error = Image::open("/nonexistent/image:tag", &store).unwrap_err().to_string();
    assert!(error.starts_with("image /nonexistent/image:tag: no such file or directory"), "{error}");
}

#[test]
fn what_is_not_what_its_digest_says_is_not_kept() {
    let store_is_empty = |layout: &Layout| {
        let layers = fs::read_dir(layout.dir.path().join("store/layers"));
        layers.map_or(0, |layers| layers.filter(|layer| layer.as_ref().unwrap().path().is_dir()).count()) == 0
    };
    // Another layer under the digest, of the same size.
    let layout = Layout::new();
    let evil = tar(&[("evil/", Directory, "")]);
    let good = tar(&[("good/", Directory, "")]);
    layout.index(&[layout.manifest(json!({}), &[plain(good.clone())])]);
    fs::write(layout.path().join("blobs/sha256").join(Digest::of(&good).hex()), &evil).unwrap();
    let error = layout.open("").unwrap_err();
    assert!(error.contains(&format!("is {}, not {}", Digest::of(&evil), Digest::of(&good))), "{error}");
    assert!(store_is_empty(&layout));
    // A layer that is not what the configuration says.
    let layout = Layout::new();
    layout.index(&[layout.manifest(json!({}), &[(evil.clone(), good.clone())])]);
    assert!(layout.open("").unwrap_err().contains("the contents of blobs/sha256/"));
    assert!(store_is_empty(&layout));
    // A manifest that was changed.
    let layout = Layout::new();
    let manifest = layout.manifest(json!({}), &[]);
    layout.index(std::slice::from_ref(&manifest));
    let digest = Digest::parse(manifest["digest"].as_str().unwrap()).unwrap();
    fs::write(layout.path().join("blobs/sha256").join(digest.hex()), "{}").unwrap();
    assert!(layout.open("").unwrap_err().contains(" is sha256:"));
    // Digests that are paths, or of other kinds.
    for digest in ["sha256:../../../secret", "sha512:00"] {
        let layout = Layout::new();
        layout.index(&[
            json!({"digest": digest, "size": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}),
        ]);
        let error = layout.open("").unwrap_err();
        assert!(error.contains("digest") || error.contains("encoded value"), "{error}");
    }
}

#[test]
fn a_malicious_layer_leaves_nothing() {
    let layout = Layout::new();
    layout.index(&[
        layout.manifest(json!({}), &[gzip(tar(&[("a", Regular, "x"), ("../../escaped", Regular, "x")]))])
    ]);
    let error = layout.open("").unwrap_err();
    assert!(error.ends_with("entry ../../escaped leads out of the root"), "{error}");
    assert_eq!(
        fs::read_dir(layout.dir.path().join("store/layers"))
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().is_dir())
            .count(),
        0
    );

    // A hundred megabytes of zeros are a hundred kilobytes of gzip.
    let layout = Layout::new();
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(100 << 20);
    header.set_cksum();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(header.as_bytes()).unwrap();
    io::copy(&mut io::Read::take(io::repeat(0), 100 << 20), &mut encoder).unwrap();
    layout.index(&[layout.manifest(json!({}), &[(encoder.finish().unwrap(), Vec::new())])]);
    let error = layout.open("").unwrap_err();
    assert!(error.ends_with(": more than 400 bytes for each compressed one"), "{error}");
    // The same bytes as the whole image, which is unpacked beside the store.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    io::copy(&mut io::Read::take(io::repeat(0), 100 << 20), &mut encoder).unwrap();
    let outer = layout.dir.path().join("outer.tar.gz");
    fs::write(&outer, encoder.finish().unwrap()).unwrap();
    let error = Image::open(outer.to_str().unwrap(), &layout.store()).unwrap_err().to_string();
    assert!(error.ends_with(": more than 400 bytes for each compressed one"), "{error}");
    let few =
        Store::at(layout.dir.path().join("other")).limits(Limits { bytes: 1 << 20, ..Limits::default() });
    let error = Image::open(outer.to_str().unwrap(), &few).unwrap_err().to_string();
    assert!(error.ends_with("more than 1048576 bytes"), "{error}");
    let error = Image::open(layout.path().to_str().unwrap(), &few).unwrap_err().to_string();
    assert!(error.ends_with("more than 1048576 bytes"), "{error}");
}

#[test]
fn indexes_that_name_each_other_many_times_are_refused() {
    let layout = Layout::new();
    let mut inner = layout.manifest(json!({}), &[plain(base())]);
    for _ in 0..3 {
        let many = json!({"schemaVersion": 2, "manifests": vec![inner; 100]});
        inner = layout.text("index.v1", &many);
    }
    layout.index(&[inner]);
    let error = layout.open("").unwrap_err();
    assert!(error.ends_with("its indexes have too many entries"), "{error}");
}

#[test]
fn a_disk_has_what_the_layers_show() {
    let layout = three_layers();
    let image = layout.open("").unwrap();
    let disk = layout.dir.path().join("disk");
    make_disk(&image.layers, None, &disk).unwrap();
    let debugfs = |request: &str| {
        let mut command = std::process::Command::new("debugfs");
        command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        let output = command.args(["-R", request]).arg(&disk).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(debugfs("cat /etc/kept"), "changed");
    assert!(debugfs("stat /bin/same").contains("Links: 2"), "{}", debugfs("stat /bin/same"));
    assert_eq!(debugfs("cat /etc/old"), "");
    let error = make_disk(&image.layers, Some(8 << 10), &layout.dir.path().join("small")).unwrap_err();
    assert!(error.to_string().starts_with("mkfs.ext4: "), "{error}");
    assert!(!layout.dir.path().join("small").exists());
}
