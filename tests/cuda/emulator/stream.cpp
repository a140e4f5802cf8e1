// Streams: queued work, its order, captures.
#include "calls.hpp"

#include <algorithm>
#include <chrono>

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

int& thread_capture_mode() {
    static thread_local int mode = 0;
    return mode;
}

Result forbid_in_capture(Context* context, bool uses_legacy) {
    Result result = SUCCESS;
    for (Capture* capture : captures) {
        // Modes are 0 global, 1 of the thread, 2 relaxed; the capture has one, and the calling thread.
        const bool own = capture->thread == std::this_thread::get_id(), anyones = capture->mode == 0;
        const int thread = thread_capture_mode();
        const bool concerns = thread == 0 ? anyones || (own && capture->mode == 1) : thread == 1 && own && capture->mode != 2;
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

static Result create_stream(void** out, unsigned flags) {
    READY;
    if (flags > 1) return INVALID_VALUE;
    Stream* stream = new Stream{context, flags == 0, {}};
    streams.live.insert(stream);
    context->streams.insert(stream);
    *out = stream;
    return SUCCESS;
}
CALL(cuStreamCreate, (void** out, unsigned flags), (out, flags)) { return create_stream(out, flags); }
CALL(cuStreamCreateWithPriority, (void** out, unsigned flags, int), (out, flags, 0)) { return create_stream(out, flags); }
CALL(cuStreamDestroy_v2, (void* handle), (handle)) {
    TRY(started());
    if (!streams.has(handle)) return INVALID_HANDLE;
    Stream* stream = (Stream*)handle;
    drain(stream, stream->issued);
    stream->context->streams.erase(stream);
    streams.live.erase(stream);
    if (stream->capture) stream->capture->broken = true;
    delete stream;
    return SUCCESS;
}
CALL(cuStreamSynchronize, (void* handle), (handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    if (stream->capture) {
        stream->capture->broken = true;
        return CAPTURE_UNSUPPORTED;
    }
    TRY(forbid_in_capture(context, stream == context->legacy.get()));
    return drain(stream, stream->issued);
}
CALL(cuStreamQuery, (void* handle), (handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    TRY(forbid_in_capture(context, stream == context->legacy.get()));
    if (stream->queue.empty()) return SUCCESS;
    TRY(drain(stream, stream->done + 1)); // who asks again and again gets there
    return stream->queue.empty() ? SUCCESS : NOT_READY;
}
CALL(cuStreamGetCtx, (void* handle, void** out), (handle, out)) {
    READY;
    if ((uintptr_t)handle <= 2) {
        *out = context;
        return SUCCESS;
    }
    if (!streams.has(handle)) return INVALID_HANDLE;
    *out = ((Stream*)handle)->context;
    return SUCCESS;
}
CALL(cuStreamGetFlags, (void* handle, unsigned* flags), (handle, flags)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    *flags = !stream->blocking;
    return SUCCESS;
}

CALL(cuEventCreate, (void** out, unsigned), (out, 0)) {
    READY;
    Event* event = new Event;
    event->context = context;
    events.live.insert(event);
    *out = event;
    return SUCCESS;
}
CALL(cuEventDestroy_v2, (void* handle), (handle)) {
    if (!events.has(handle)) return INVALID_HANDLE;
    events.live.erase(handle);
    delete (Event*)handle;
    return SUCCESS;
}
CALL(cuEventRecord, (void* handle, void* stream_handle), (handle, stream_handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, stream_handle, stream));
    if (!events.has(handle)) return INVALID_HANDLE;
    Event* event = (Event*)handle;
    if (event->context != context) return INVALID_HANDLE;
    std::shared_ptr<double> time = event->time;
    TRY(enqueue(stream, [=] {
        *time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
        return SUCCESS;
    }));
    event->stream = stream;
    event->place = stream->issued;
    event->capture = stream->capture;
    return SUCCESS;
}
CALL(cuEventSynchronize, (void* handle), (handle)) {
    READY;
    if (!events.has(handle)) return INVALID_HANDLE;
    Event* event = (Event*)handle;
    if (event->capture && captures.count(event->capture)) return CAPTURED_EVENT;
    TRY(forbid_in_capture(context));
    if (!event->stream || (!streams.has(event->stream) && event->stream != event->context->legacy.get())) return SUCCESS;
    return drain(event->stream, event->place);
}
CALL(cuEventQuery, (void* handle), (handle)) {
    READY;
    if (!events.has(handle)) return INVALID_HANDLE;
    Event* event = (Event*)handle;
    if (!event->stream || (!streams.has(event->stream) && event->stream != event->context->legacy.get())) return SUCCESS;
    if (event->stream->done >= event->place) return SUCCESS;
    TRY(drain(event->stream, event->stream->done + 1));
    return event->stream->done >= event->place ? SUCCESS : NOT_READY;
}
CALL(cuEventElapsedTime, (float* ms, void* from, void* to), (ms, from, to)) {
    READY;
    if (!events.has(from) || !events.has(to)) return INVALID_HANDLE;
    for (void* handle : {from, to}) {
        Event* event = (Event*)handle;
        if (!event->stream) return INVALID_HANDLE;
        if (streams.has(event->stream) && event->stream->done < event->place) return NOT_READY;
    }
    *ms = (float)(*((Event*)to)->time - *((Event*)from)->time);
    return SUCCESS;
}
CALL(cuStreamWaitEvent, (void* stream_handle, void* handle, unsigned), (stream_handle, handle, 0)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, stream_handle, stream));
    if (!events.has(handle)) return INVALID_HANDLE;
    Event* event = (Event*)handle;
    if (!event->stream) return SUCCESS;
    if (event->capture && captures.count(event->capture)) { // the waiting stream joins the capture
        if (stream->capture && stream->capture != event->capture) return CAPTURE_ISOLATION;
        stream->capture = event->capture;
        event->capture->streams.insert(stream);
        return SUCCESS;
    }
    if (stream->capture) return CAPTURE_ISOLATION;
    TRY(enqueue(stream, [] { return SUCCESS; }));
    if (!stream->queue.empty() && (streams.has(event->stream) || event->stream == context->legacy.get()))
        stream->queue.back().after.push_back({event->stream, event->place});
    return SUCCESS;
}
