// swift-tools-version:5.7
import PackageDescription

// CBitlinear is the module map beside bitlinear.h; pkg-config tells where both were installed.
let package = Package(
    name: "OneLayer",
    targets: [
        .systemLibrary(name: "CBitlinear", pkgConfig: "bitlinear"),
        .executableTarget(name: "OneLayer", dependencies: ["CBitlinear"]),
    ]
)
