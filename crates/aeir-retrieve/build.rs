//! Compiles the kernels for NVIDIA cards; without the feature `cuda` there is nothing to do.
//!
//! `CUDA_COMPUTE_CAP` names the oldest card. The kernels stay PTX, which the driver compiles for the card at hand.

use std::error::Error;

#[cfg(feature = "cuda")]
fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::path::PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?);
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    cudaforge::KernelBuilder::new()
        .source_dir("kernels")
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()?
        .write(folder.join("ptx.rs"))?;
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}
