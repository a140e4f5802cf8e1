// Captures and graphs. A capture records the order of the calls, which is one that the graph allows; what the driver
// forbids in a capture breaks it.
#include "calls.hpp"

CALL(cuStreamBeginCapture_v2, (void* handle, int mode), (handle, mode)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    if (stream == context->legacy.get()) return CAPTURE_UNSUPPORTED;
    if (stream->capture || mode < 0 || mode > 2) return INVALID_VALUE;
    Capture* capture = new Capture{stream, mode, std::this_thread::get_id(), {}, {stream}};
    captures.insert(capture);
    stream->capture = capture;
    return SUCCESS;
}
CALL(cuStreamEndCapture, (void* handle, void** out), (handle, out)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    Capture* capture = stream->capture;
    if (!capture) return INVALID_VALUE;
    if (capture->origin != stream) return CAPTURE_UNMATCHED;
    for (Stream* member : capture->streams) member->capture = nullptr;
    captures.erase(capture);
    const bool broken = capture->broken;
    *out = nullptr;
    if (!broken) {
        Graph* graph = new Graph{std::move(capture->work)};
        graphs.live.insert(graph);
        *out = graph;
    }
    delete capture;
    return broken ? CAPTURE_INVALIDATED : SUCCESS;
}
CALL(cuStreamIsCapturing, (void* handle, int* status), (handle, status)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    if (stream == context->legacy.get())
        for (Capture* capture : captures)
            for (Stream* member : capture->streams)
                if (member->context == context && member->blocking) {
                    capture->broken = true;
                    return CAPTURE_IMPLICIT;
                }
    *status = !stream->capture ? 0 : stream->capture->broken ? 2 : 1;
    return SUCCESS;
}
CALL(cuThreadExchangeStreamCaptureMode, (int* mode), (mode)) {
    if (*mode < 0 || *mode > 2) return INVALID_VALUE;
    std::swap(*mode, thread_capture_mode());
    return SUCCESS;
}
CALL(cuGraphGetNodes, (void* handle, void**, size_t* count), (handle, nullptr, count)) {
    if (!graphs.has(handle)) return INVALID_VALUE;
    *count = ((Graph*)handle)->work.size();
    return SUCCESS;
}
static Result instantiate(void** out, void* handle) {
    READY;
    if (!graphs.has(handle)) return INVALID_VALUE;
    GraphExec* exec = new GraphExec{*(Graph*)handle, context};
    graph_execs.live.insert(exec);
    *out = exec;
    return SUCCESS;
}
CALL(cuGraphInstantiate, (void** out, void* graph, unsigned long long), (out, graph, 0)) { return instantiate(out, graph); }
CALL(cuGraphInstantiateWithFlags, (void** out, void* graph, unsigned long long), (out, graph, 0)) {
    return instantiate(out, graph);
}
CALL(cuGraphInstantiate_v2, (void** out, void* graph, void**, char*, size_t), (out, graph, nullptr, nullptr, 0)) {
    return instantiate(out, graph);
}
CALL(cuGraphLaunch, (void* handle, void* stream_handle), (handle, stream_handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, stream_handle, stream));
    if (!graph_execs.has(handle)) return INVALID_VALUE;
    GraphExec* exec = (GraphExec*)handle;
    if (exec->context != context) return INVALID_VALUE;
    for (auto& work : exec->graph.work) TRY(enqueue(stream, work));
    return SUCCESS;
}
CALL(cuGraphDestroy, (void* handle), (handle)) {
    if (!graphs.has(handle)) return INVALID_VALUE;
    graphs.live.erase(handle);
    delete (Graph*)handle;
    return SUCCESS;
}
CALL(cuGraphExecDestroy, (void* handle), (handle)) {
    if (!graph_execs.has(handle)) return INVALID_VALUE;
    graph_execs.live.erase(handle);
    delete (GraphExec*)handle;
    return SUCCESS;
}
