//! Compiles the kernels for NVIDIA cards, where the feature `cuda` asks for them; else it does nothing.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    #[cfg(feature = "cuda")]
    kernels()?;
    Ok(())
}

#[cfg(feature = "cuda")]
fn kernels() -> Result<(), Box<dyn std::error::Error>> {
    let generated = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("ptx.rs");
    cudaforge::KernelBuilder::new()
        .source_dir("kernels")
        .watch(["kernels/warp.cuh"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()?
        .write(generated)?;
    Ok(())
}
