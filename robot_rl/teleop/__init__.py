"""What an operator's tool is made of: commands, clutch, mapping, episode machine, session, recording. numpy only."""
