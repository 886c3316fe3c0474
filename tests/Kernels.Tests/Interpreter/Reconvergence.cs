namespace TransformerKernels.Tests;

/// <summary>Where the threads of a warp that part at a branch meet again: the first instruction that every way from there passes (its immediate post-dominator).</summary>
internal static class Reconvergence
{
    /// <summary>Of each instruction; the number of instructions if the ways only meet at the end of the kernel.</summary>
    /// <param name="successors">The instructions that may follow each; their count stands for the end.</param>
    public static int[] Of(IReadOnlyList<int[]> successors)
    {
        // Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm" (2001), on the reversed graph.
        int end = successors.Count;
        List<int>[] predecessors = Enumerable.Range(0, end + 1).Select(_ => new List<int>()).ToArray();
        for (int i = 0; i < end; i++)
        {
            foreach (int next in successors[i])
                predecessors[next].Add(i);
        }
        int[] order = PostOrder(end, predecessors), rank = new int[end + 1], meet = new int[end + 1];
        for (int i = 0; i < order.Length; i++)
            rank[order[i]] = i;
        Array.Fill(meet, -1);
        meet[end] = end;
        for (bool changed = true; changed;)
        {
            changed = false;
            foreach (int i in order.Reverse().Skip(1))
            {
                int common = -1;
                foreach (int next in successors[i])
                {
                    if (meet[next] >= 0)
                        common = common < 0 ? next : Common(common, next);
                }
                changed |= meet[i] != common;
                meet[i] = common;
            }
        }
        // What never ends never meets.
        return meet[..end].Select(i => i < 0 ? end : i).ToArray();

        int Common(int a, int b)
        {
            while (a != b)
            {
                while (rank[a] < rank[b])
                    a = meet[a];
                while (rank[b] < rank[a])
                    b = meet[b];
            }
            return a;
        }
    }

    private static int[] PostOrder(int root, List<int>[] next)
    {
        var order = new List<int>();
        var seen = new bool[next.Length];
        var path = new Stack<(int Node, int Tried)>([(root, 0)]);
        seen[root] = true;
        while (path.TryPop(out var at))
        {
            if (at.Tried == next[at.Node].Count)
            {
                order.Add(at.Node);
                continue;
            }
            path.Push((at.Node, at.Tried + 1));
            int child = next[at.Node][at.Tried];
            if (!seen[child])
            {
                seen[child] = true;
                path.Push((child, 0));
            }
        }
        return [.. order];
    }
}
