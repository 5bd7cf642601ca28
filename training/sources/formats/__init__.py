"""The formats that data comes in, a file each (and the XML that three of them share): all give records."""
