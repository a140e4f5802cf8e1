// OneLayer FILE LAYER: y = x W^T + b for one layer of a GGUF or safetensors file, x all ones.
// Not run by this project's tests, which have no Swift: only the module maps are checked, by clang.
import CBitlinear
import Foundation

struct BitlinearError: Error, CustomStringConvertible {
    let status: bl_status
    let description: String
}

/// Calls with an error of its own; a failure is thrown.
func check(_ call: (UnsafeMutablePointer<bl_error>) -> bl_status) throws {
    var why = bl_error()
    let status = call(&why)
    guard status == BL_OK else {
        let text = withUnsafePointer(to: &why.message) {
            $0.withMemoryRebound(to: CChar.self, capacity: 252) { String(cString: $0) }
        }
        throw BitlinearError(status: status, description: text)
    }
}

/// Owner of a handle: freed with the object, in any order.
final class Handle {
    let raw: OpaquePointer
    init(_ raw: OpaquePointer) { self.raw = raw }
    deinit { bl_free(UnsafeMutableRawPointer(raw)) }
}

func load(_ path: String) throws -> Handle {
    var raw: OpaquePointer?
    try check { bl_load(nil, path, nil, &raw, $0) }
    return Handle(raw!)
}

func open(_ model: Handle, _ name: String) throws -> (layer: Handle, info: bl_layer_info) {
    var raw: OpaquePointer?
    try withExtendedLifetime(model) {
        try check { bl_layer_open(model.raw, name, nil, &raw, $0) }
    }
    let layer = Handle(raw!)
    var info = bl_layer_info()
    info.struct_size = UInt32(MemoryLayout<bl_layer_info>.size)
    try check { bl_layer_describe(layer.raw, &info, $0) } // lives: it is returned
    return (layer, info)
}

func leave(_ text: String, _ status: Int32) -> Never {
    FileHandle.standardError.write(Data((text + "\n").utf8))
    exit(status)
}

let words = CommandLine.arguments
guard words.count == 3 else { leave("usage: OneLayer FILE LAYER", 2) }
do {
    let (layer, info) = try open(try load(words[1]), words[2])
    let x = [Float](repeating: 1, count: Int(info.in_features))
    var y = [Float](repeating: 0, count: Int(info.out_features))
    // Swift keeps an object until its last use, which would be the reading of `raw`.
    try withExtendedLifetime(layer) {
        try check { bl_forward(layer.raw, 1, x, BL_TYPE_F32, 0, &y, BL_TYPE_F32, 0, nil, $0) }
    }
    print("\(info.out_features) x \(info.in_features)\ny =", y.prefix(8))
} catch {
    leave("\(error)", 1)
}
