using Spectre.Console;

namespace Alignment;

/// <summary>What the program tells people: lines, tables, and bars on long work where a person watches.</summary>
internal sealed class Screen(IAnsiConsole console)
{
    /// <summary>Whether bars are drawn: not into a file or pipe.</summary>
    private bool Draws => console.Profile.Capabilities.Interactive && console.Profile.Out.IsTerminal;

    /// <summary>A line, not folded at the width of the screen.</summary>
    public void Line(string text) => console.Profile.Out.Writer.WriteLine(text);

    public void Table(string title, string[] columns, params string[][] rows)
    {
        Table table = new Table().Title(Markup.Escape(title)).Border(TableBorder.Rounded);
        foreach (string column in columns)
            table.AddColumn(new TableColumn(Markup.Escape(column)) { Alignment = column.Length == 0 ? Justify.Left : Justify.Right });
        foreach (string[] row in rows)
            table.AddRow([.. row.Select(Markup.Escape)]);
        console.Write(table);
    }

    /// <summary>Runs work of so many steps; the work calls what it is given once a step.</summary>
    public void Work(string title, int steps, Action<Action> work)
    {
        if (!Draws)
        {
            work(() => { });
            return;
        }
        console.Progress().AutoClear(true)
            .Columns(new TaskDescriptionColumn(), new ProgressBarColumn(), new PercentageColumn(), new RemainingTimeColumn())
            .Start(context =>
            {
                ProgressTask task = context.AddTask(Markup.Escape(title), maxValue: steps);
                work(() => task.Increment(1));
            });
    }
}
