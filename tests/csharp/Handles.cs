// What examples/csharp/Bitlinear.cs promises: handles that are dropped in any order, on any thread, while
// others are in use; failures that say what failed.
using System;
using System.Linq;
using System.Threading;
using Bitlinear;

internal static class Handles
{
    private static void Check(bool good, string what)
    {
        if (!good) throw new Exception(what);
    }

    private static int StatusOf(Action action)
    {
        try
        {
            action();
        }
        catch (BitlinearException error)
        {
            Check(error.Message.Length > 0, "a failure without a text");
            return error.Status;
        }
        return 0;
    }

    // Layers and models that nobody disposes: the finalizer's thread frees them.
    private static void Drop(string file, string tensor, float[] x, float[] want)
    {
        for (int i = 0; i < 200; i++)
        {
            var layer = Model.Load(file).Layer(tensor);
            Check(layer.Forward(1, x).SequenceEqual(want), "other numbers");
            if (i % 20 == 0) GC.Collect();
        }
    }

    private static int Main(string[] words)
    {
        string file = words[0], tensor = words[1];
        var model = Model.Load(file);
        var layer = model.Layer(tensor);
        var x = Enumerable.Range(0, (int)layer.InFeatures).Select(k => (float)Math.Sin(k)).ToArray();
        var want = layer.Forward(1, x);
        Check(want.Any(v => v != 0), "all zeros");

        var wrong = 0;
        var threads = Enumerable.Range(0, 4).Select(_ => new Thread(() =>
        {
            try
            {
                Drop(file, tensor, x, want);
            }
            catch (Exception error)
            {
                Console.Error.WriteLine(error);
                Interlocked.Increment(ref wrong);
            }
        })).ToArray();
        foreach (var thread in threads) thread.Start();
        foreach (var thread in threads) thread.Join();
        Check(wrong == 0, "a thread failed");
        GC.Collect();
        GC.WaitForPendingFinalizers();

        Check(StatusOf(() => model.Layer("no-such")) == 6, "BL_ERROR_NOT_FOUND");
        Check(StatusOf(() => Model.Load("/nowhere/\u00e9.gguf")) == 7, "BL_ERROR_IO");
        Check(StatusOf(() => layer.Kernel(-1)) == 1, "BL_ERROR_INVALID_ARGUMENT");
        var refused = false;
        try
        {
            layer.Forward(2, x);
        }
        catch (ArgumentException)
        {
            refused = true;
        }
        Check(refused, "an array that is too short");

        layer.Dispose();
        layer.Dispose();
        var disposed = false;
        try
        {
            layer.Forward(1, x);
        }
        catch (ObjectDisposedException)
        {
            disposed = true;
        }
        Check(disposed, "a layer that was disposed");
        model.Dispose();
        Console.WriteLine("csharp: good");
        return 0;
    }
}
