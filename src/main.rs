//! The `meterkast` command; see the library for everything that it does.

fn main() -> std::process::ExitCode {
    meterkast::cli::main()
}
