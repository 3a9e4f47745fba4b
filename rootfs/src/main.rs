//! Builds the guest image: `nakai-rootfs kernel`, `initrd`, `busybox`, `systemd`, `debian`. See `--help`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use nakai_rootfs::busybox::{self, Busybox};
use nakai_rootfs::cache::Cache;
use nakai_rootfs::initrd::{Builder, Compression, ExtraFile};
use nakai_rootfs::{debian, files, kernel, systemd};

/// Builds the guest image of nakai, and root file systems for containers in it
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Where downloads are kept [default: .cache in the project]
    #[arg(long, global = true, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetches the guest's kernel and prints the path of its image
    Kernel(KernelOptions),
    /// Builds the initrd: the agent, kernel modules and busybox
    Initrd(InitrdOptions),
    /// Writes a small root file system for containers, made of busybox
    Busybox {
        /// The folder, which is made
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Fetches systemd and its libraries for tests, and prints where they are
    Systemd,
    /// Makes a Debian root file system for containers (needs root)
    Debian {
        /// The folder, which is made; or a file `*.tar`
        #[arg(long, value_name = "DIR|TAR")]
        output: PathBuf,
        /// The release [default: this machine's]
        #[arg(long)]
        suite: Option<String>,
    },
}

#[derive(Debug, Args)]
struct KernelOptions {
    /// Copies the image to a file
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A meta package of kernels [default: the small one of this distribution]
    #[arg(long)]
    package: Option<String>,
    /// Takes the newest version that apt knows instead of a cached one
    #[arg(long)]
    refresh: bool,
}

#[derive(Debug, Args)]
struct InitrdOptions {
    /// The agent, a static program
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// The initrd
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// A module to carry beside the usual ones, with what it needs
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// A file to carry
    #[arg(long = "file", value_name = "SOURCE:DESTINATION[:MODE]")]
    files: Vec<ExtraFile>,
    /// Compression: none boots fastest
    #[arg(long, value_enum, default_value = "none")]
    compress: Compress,
    /// A meta package of kernels [default: the small one of this distribution]
    #[arg(long)]
    package: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compress {
    None,
    Gzip,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nakai-rootfs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let cache = match options.cache {
        Some(dir) => Cache::new(dir),
        None => Cache::of_project()?,
    };
    match options.command {
        Command::Kernel(options) => fetch_kernel(&cache, &options),
        Command::Initrd(options) => build_initrd(&cache, options),
        Command::Busybox { output } => Ok(busybox::write_root(&Busybox::find()?, &output)?),
        Command::Systemd => {
            println!("{}", systemd::fetch(&cache)?.display());
            Ok(())
        }
        Command::Debian { output, suite } => fetch_debian(&cache, &output, suite.as_deref()),
    }
}

fn fetch_kernel(cache: &Cache, options: &KernelOptions) -> Result<(), Box<dyn Error>> {
    if options.refresh {
        kernel::forget(cache)?;
    }
    let kernel = kernel::fetch(cache, options.package.as_deref())?;
    let image = match &options.output {
        Some(output) => {
            files::write(output, &files::read(&kernel.image)?)?;
            output
        }
        None => &kernel.image,
    };
    println!("{}", image.display());
    Ok(())
}

fn build_initrd(cache: &Cache, options: InitrdOptions) -> Result<(), Box<dyn Error>> {
    let kernel = kernel::fetch(cache, options.package.as_deref())?;
    let compression = match options.compress {
        Compress::None => Compression::None,
        Compress::Gzip => Compression::Gzip,
    };
    let builder = Builder::new(options.agent, kernel, Busybox::find()?).compression(compression);
    let builder = options.modules.into_iter().fold(builder, Builder::module);
    let builder = options.files.into_iter().fold(builder, Builder::file);
    Ok(builder.write(&options.output)?)
}

fn fetch_debian(cache: &Cache, output: &Path, suite: Option<&str>) -> Result<(), Box<dyn Error>> {
    let archive = debian::fetch(cache, suite)?;
    if output.extension().is_some_and(|extension| extension == "tar") {
        std::fs::copy(&archive, output).map_err(|error| format!("{}: {error}", output.display()))?;
        return Ok(());
    }
    Ok(debian::unpack(&archive, output)?)
}
