// OneLayer FILE LAYER: y = x W^T + b for one layer of a GGUF or safetensors file, x all ones.
using System;
using System.Globalization;
using System.Linq;
using Bitlinear;

internal static class OneLayer
{
    private static int Main(string[] words)
    {
        if (words.Length != 2)
        {
            Console.Error.WriteLine("usage: OneLayer FILE LAYER");
            return 2;
        }
        try
        {
            using (var model = Model.Load(words[0]))
            using (var layer = model.Layer(words[1]))
            {
                model.Dispose(); // a layer keeps what it needs
                var x = Enumerable.Repeat(1f, (int)layer.InFeatures).ToArray();
                var y = layer.Forward(1, x);
                Console.WriteLine($"{layer.OutFeatures} x {layer.InFeatures}, {layer.Kernel(1)}");
                var shown = y.Take(8).Select(v => v.ToString("G6", CultureInfo.InvariantCulture));
                Console.WriteLine("y = " + string.Join(" ", shown));
            }
            return 0;
        }
        catch (BitlinearException error)
        {
            Console.Error.WriteLine($"{error.Message} (status {error.Status})");
            return 1;
        }
    }
}
