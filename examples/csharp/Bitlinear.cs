// Layers of libbitlinear for C#: handles that free themselves, failures as exceptions. One file to copy;
// it covers what the example needs, and shows how to go on. C# 7; meant for any .NET, run
// with Mono.
using System;
using System.Runtime.InteropServices;
using System.Text;

namespace Bitlinear
{
    /// <summary>A call that failed; Status is the bl_status.</summary>
    public sealed class BitlinearException : Exception
    {
        public int Status { get; }

        internal BitlinearException(int status, string message) : base(message)
        {
            Status = status;
        }
    }

    /// <summary>bl_context, bl_model or bl_layer. A handle keeps what it needs alive, so that the
    /// collector may finalise them in any order; calls hold on to the handles that they are given.</summary>
    public abstract class Handle : SafeHandle
    {
        protected Handle() : base(IntPtr.Zero, true) { }

        public override bool IsInvalid => handle == IntPtr.Zero;

        protected override bool ReleaseHandle()
        {
            Native.bl_free(handle);
            return true;
        }
    }

    /// <summary>An opened file. May be disposed while its layers are in use.</summary>
    public sealed class Model : Handle
    {
        private Model() { }

        public static Model Load(string path)
        {
            Native.Check(Native.bl_load(IntPtr.Zero, Native.Utf8(path), IntPtr.Zero, out Model model, out var error), error);
            return model;
        }

        /// <summary>A layer by its name, "blk.0.attn_q", with scale and bias; by a tensor's name,
        /// "blk.0.attn_q.weight", the matrix alone. Dispose it.</summary>
        public Layer Layer(string name)
        {
            Native.Check(Native.bl_layer_open(this, Native.Utf8(name), IntPtr.Zero, out Layer layer, out var error), error);
            return layer;
        }
    }

    /// <summary>One linear layer. Any number of threads may call Forward at a time.</summary>
    public sealed class Layer : Handle
    {
        private Layer() { }

        public long InFeatures => Describe().InFeatures;
        public long OutFeatures => Describe().OutFeatures;

        /// <summary>The kernel for m rows of x.</summary>
        public string Kernel(long m)
        {
            var plan = new Native.PlanInfo { StructSize = (uint)Marshal.SizeOf<Native.PlanInfo>() };
            Native.Check(Native.bl_plan(this, 0, m, Native.F32, ref plan, out var error), error);
            return Marshal.PtrToStringAnsi(plan.Kernel); // a static text of ASCII
        }

        /// <summary>y[m x OutFeatures] = x[m x InFeatures] W^T + b.</summary>
        public float[] Forward(long m, float[] x)
        {
            var info = Describe();
            // The library trusts the shapes that it is told: what C cannot see is checked here.
            if (m < 0 || x.LongLength != checked(m * info.InFeatures))
                throw new ArgumentException($"{x.LongLength} numbers are not {m} rows of {info.InFeatures}");
            var y = new float[checked(m * info.OutFeatures)];
            Native.Check(
                Native.bl_forward(this, m, x, Native.F32, 0, y, Native.F32, 0, IntPtr.Zero, out var error), error);
            return y;
        }

        private Native.LayerInfo Describe()
        {
            var info = new Native.LayerInfo { StructSize = (uint)Marshal.SizeOf<Native.LayerInfo>() };
            Native.Check(Native.bl_layer_describe(this, ref info, out var error), error);
            return info;
        }
    }

    internal static class Native
    {
        private const string Library = "bitlinear";
        internal const uint F32 = 1;

        [StructLayout(LayoutKind.Sequential)]
        internal struct Error
        {
            internal int Status;
            [MarshalAs(UnmanagedType.ByValArray, SizeConst = 252)]
            internal byte[] Message;
        }

        // The beginnings of the header's structs: StructSize says how much there is.
        [StructLayout(LayoutKind.Sequential)]
        internal struct LayerInfo
        {
            internal uint StructSize;
            internal uint Type;
            internal long InFeatures;
            internal long OutFeatures;
        }

        [StructLayout(LayoutKind.Sequential)]
        internal struct PlanInfo
        {
            internal uint StructSize;
            internal uint Threads;
            internal IntPtr Kernel;
        }

        [DllImport(Library)]
        internal static extern void bl_free(IntPtr handle);

        [DllImport(Library)]
        internal static extern int bl_load(
            IntPtr context, byte[] path, IntPtr options, out Model model, out Error error);

        [DllImport(Library)]
        internal static extern int bl_layer_open(
            Model model, byte[] name, IntPtr options, out Layer layer, out Error error);

        [DllImport(Library)]
        internal static extern int bl_layer_describe(Layer layer, ref LayerInfo info, out Error error);

        [DllImport(Library)]
        internal static extern int bl_plan(
            Layer layer, uint op, long m, uint xType, ref PlanInfo info, out Error error);

        // Arrays of numbers are pinned for the call, not copied.
        [DllImport(Library)]
        internal static extern int bl_forward(
            Layer layer, long m, [In] float[] x, uint xType, long xStride, [In, Out] float[] y, uint yType,
            long yStride, IntPtr options, out Error error);

        internal static byte[] Utf8(string text)
        {
            if (text.IndexOf('\0') >= 0) throw new ArgumentException("a name or path with a NUL, which C would take for its end");
            return Encoding.UTF8.GetBytes(text + "\0");
        }

        internal static void Check(int status, Error error)
        {
            if (status == 0) return;
            int length = Array.IndexOf(error.Message, (byte)0);
            throw new BitlinearException(status, Encoding.UTF8.GetString(error.Message, 0, Math.Max(length, 0)));
        }
    }
}
