// Streams: queued work, its order, captures.
#include "driver.hpp"

#include <algorithm>

namespace emu::driver {

std::set<Capture*> captures;

/// In a context, the legacy stream and the blocking ones wait for one another.
static std::vector<std::pair<Stream*, uint64_t>> implicit_order(Stream* stream) {
    std::vector<std::pair<Stream*, uint64_t>> list;
    Context* context = stream->context;
    if (stream == context->legacy.get()) {
        for (Stream* other : context->streams)
            if (other != stream && other->blocking) list.push_back({other, other->issued});
    } else if (stream->blocking) {
        list.push_back({context->legacy.get(), context->legacy->issued});
    }
    return list;
}

Result enqueue(Stream* stream, std::function<Result()> run) {
    Context* context = stream->context;
    if (Capture* capture = stream->capture) {
        if (capture->broken) return CAPTURE_INVALIDATED;
        capture->work.push_back(std::move(run));
        return SUCCESS;
    }
    if (stream == context->legacy.get()) {
        for (Capture* capture : captures)
            for (Stream* member : capture->streams)
                if (member->context == context && member->blocking) {
                    capture->broken = true;
                    return CAPTURE_IMPLICIT;
                }
    }
    stream->queue.push_back({std::move(run), implicit_order(stream)});
    stream->issued++;
    if (!choices.number("lazy", 1)) return drain(stream, stream->issued);
    return SUCCESS;
}

Result drain(Stream* stream, uint64_t place) {
    Context* context = stream->context;
    while (stream->done < place && !stream->queue.empty()) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        for (auto& [other, until] : work.after)
            if (streams.has(other) || other == context->legacy.get()) drain(other, until);
        if (context->lost == SUCCESS) {
            open_memory(context);
            const Result result = work.run();
            close_memory();
            if (result != SUCCESS) context->lost = result;
        }
        stream->done++;
    }
    return context->lost;
}

Result drain(Context* context) {
    std::vector<Stream*> list(context->streams.begin(), context->streams.end());
    // The order between streams is nobody's promise: the seed decides.
    std::rotate(list.begin(), list.begin() + (long)(settings.seed % list.size()), list.end());
    for (Stream* stream : list) drain(stream, stream->issued);
    return context->lost;
}

Result forbid_in_capture(Context* context, bool uses_legacy) {
    Result result = SUCCESS;
    for (Capture* capture : captures) {
        const bool concerns = capture->mode == 0 || (capture->mode == 1 && capture->thread == std::this_thread::get_id());
        bool legacy = false;
        if (uses_legacy)
            for (Stream* member : capture->streams) legacy |= member->context == context && member->blocking;
        if (!concerns && !legacy) continue;
        capture->broken = true;
        result = concerns ? CAPTURE_UNSUPPORTED : CAPTURE_IMPLICIT;
    }
    return result;
}

Result find_stream(Context* context, void* handle, Stream*& stream) {
    if ((uintptr_t)handle <= 2) { // null, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD (taken for the same)
        stream = context->legacy.get();
        return SUCCESS;
    }
    if (!streams.has(handle)) return INVALID_HANDLE;
    stream = (Stream*)handle;
    return stream->context == context ? SUCCESS : INVALID_HANDLE;
}

} // namespace emu::driver
